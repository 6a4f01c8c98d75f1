#include "kernels/gemm.h"

#include "kernels/cpu/isa_headers.h"
#include "kernels/cpu/product_tasks.h"
//
#include "kernels/cpu/isa_begin.inc"
//
#include "kernels/cpu/fp8_simd.inc"
#include "kernels/cpu/gemm_tile.inc"

namespace {

static_assert(kWords % kGemmKBlock == 0);  // no piece is cut by a block

template <class Scalar>
struct PlainMath {
  static constexpr bool kPairs = std::is_same_v<Scalar, bfloat16>;
  using Words = std::conditional_t<kPairs, PairWords, FloatWords>;
  using Total = float;

  static void pack_column_extras(const auto&, int64_t, int64_t, int64_t, int64_t, Panels&) {}
  static void pack_row_extras(const auto&, int64_t, int64_t, int64_t, int64_t, Panels&) {}

  template <int64_t rows, bool across>
  [[gnu::noinline]] static void tile(const Tile& t) {
    constexpr int64_t V = Words::kVectors;
    for_pieces<kGemmKBlock>(t, [&](const Piece& piece) OCTET_INLINE_LAMBDA {
      f32x16 acc[rows][V];
      each_sum<rows, V>([&](auto i, auto v) { acc[i][v] = splat(0.0f); });
      const int64_t w = piece.k / Words::kElements;
      const int64_t words = kPairs ? (piece.depth + 1) / 2 * (2 / Words::kElements) : piece.depth;
      multiply<Words, across, rows>(t.a + w * kWordStep<across>, t.b + w * 16 * V, words, acc);
      if (!piece.first) {
        const float* const total = static_cast<const float*>(t.total);
        each_sum<rows, V>([&](auto i, auto v) { acc[i][v] = load(total + i * kTotalStride + 16 * v) + acc[i][v]; });
      }
      put_sums(t, piece, acc);
    });
  }
};

template <class Scalar>
constexpr int64_t kUnit = 16 * PlainMath<Scalar>::Words::kVectors;  // columns of a tile

template <class Scalar, class A, class B>
void sum_task(const Task& task, int64_t K, const A& a, const B& b, const Result& result) {
  const auto run = [&] { sum_products<PlainMath<Scalar>>(task, K, a, b, panels_of_this_thread(), result); };
  if constexpr (std::is_same_v<Scalar, bfloat16>) {
    const FlushSubnormals flush;
    run();
  } else {
    run();
  }
}

int64_t num_groups(const ConstView& offsets) { return offsets.is_defined() ? offsets.num_elements() - 1 : 1; }
// First row of group g; g may be the number of groups.
int64_t row_of_group(const ConstView& offsets, int64_t rows, int64_t g) {
  return offsets.is_defined() ? offsets.data<int64_t>()[g] : g == 0 ? 0 : rows;
}
int64_t rows_of_group(const ConstView& offsets, int64_t rows, int64_t g) {
  return row_of_group(offsets, rows, g + 1) - row_of_group(offsets, rows, g);
}

}  // namespace

void grouped_gemm(const GroupedGemm& args, Stream& stream) {
  visit_float(args.a.dtype(), [&]<class Scalar>() {
    const int64_t R = args.c.rows(), N = args.c.cols(), K = args.a.cols(), G = num_groups(args.offsets);
    const int32_t* gather = args.rows.is_defined() ? args.rows.data<int32_t>() : nullptr;
    std::vector<GroupSize> groups;
    for (int64_t g = 0; g < G; ++g) groups.push_back({rows_of_group(args.offsets, R, g), K});
    const Tasks tasks = cut_tasks(stream.pool().num_threads(), groups, N, kUnit<Scalar>);
    stream.parallel_shares(tasks.ends, [&](int64_t index) {
      const Task& task = tasks.all[size_t(index)];
      const int64_t first = row_of_group(args.offsets, R, task.group);
      const Operand<Scalar, false> a = {lines_of<Scalar>(args.a, first, gather)};
      const Result result = result_in(args.c, first + task.row, task, args.accumulate);
      if (args.b_is_kn) {
        sum_task<Scalar>(task, K, a, Operand<Scalar, true>{lines_of<Scalar>(args.b, task.group * K)}, result);
      } else {
        sum_task<Scalar>(task, K, a, Operand<Scalar, false>{lines_of<Scalar>(args.b, task.group * N)}, result);
      }
    });
  });
}

void grouped_wgrad(const GroupedWgrad& args, Stream& stream) {
  visit_float(args.dy.dtype(), [&]<class Scalar>() {
    const int64_t R = args.dy.rows(), N = args.dy.cols(), K = args.x.cols(), G = num_groups(args.offsets);
    const int32_t* gather = args.rows.is_defined() ? args.rows.data<int32_t>() : nullptr;
    std::vector<GroupSize> groups;
    for (int64_t g = 0; g < G; ++g) {
      groups.push_back(gradient_group(N, rows_of_group(args.offsets, R, g), args.accumulate));
    }
    const Tasks tasks = cut_tasks(stream.pool().num_threads(), groups, K, kUnit<Scalar>);
    stream.parallel_shares(tasks.ends, [&](int64_t index) {
      const Task& task = tasks.all[size_t(index)];
      const int64_t first = row_of_group(args.offsets, R, task.group);
      const Operand<Scalar, true> a = {lines_of<Scalar>(args.dy, first)};
      const Operand<Scalar, true> b = {lines_of<Scalar>(args.x, first, gather)};
      sum_task<Scalar>(task, groups[size_t(task.group)].depth, a, b, gradient_in(args.dw, task, args.accumulate));
    });
  });
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(grouped_gemm, GroupedGemm)
OCTET_CPU_KERNEL(grouped_wgrad, GroupedWgrad)
