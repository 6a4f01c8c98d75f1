#include "kernels/gemm.h"

#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/gemm_persistent.cuh"
#include "kernels/cuda/gemm_plain.cuh"
#include "kernels/cuda/gemm_tensor.cuh"

namespace octet::kernels::cuda {
namespace {

// The tile that multiplies two matrices of a type.
template <class Scalar>
using TileOf = std::conditional_t<std::is_same_v<Scalar, float>, PlainTile<FloatMath>, TensorTile<Bf16Products>>;

const int32_t* rows_of(const ConstView& rows) { return rows.is_defined() ? rows.data<int32_t>() : nullptr; }

template <class Args>
bool is_done_by_library(const Args& args, Stream& stream) {
  if (dense_gemm() == DenseGemm::kOctet) return false;
  const std::optional<DenseProduct> product = as_dense_product(args);
  return product && multiply_dense(*product, stream);
}

// Products of bfloat16 whose operands a GPU copies by tiles.
template <class Result>
bool is_done_by_tiles(const GroupedGemm& args, Stream& stream) {
  const int64_t R = args.c.rows(), N = args.c.cols(), K = args.a.cols();
  if (args.a.dtype() != DType::kBFloat16 || R == 0 || N == 0 || K == 0) return false;
  const int groups = args.offsets.is_defined() ? int(args.offsets.num_elements() - 1) : 1;
  const PersistentProduct<bfloat16, RowSpans, Result> product{
      .a = args.a.data<bfloat16>(),
      .a_step = args.a.row_stride(),
      .lines = rows_of(args.rows),
      .b_group_rows = args.b_is_kn ? K : N,
      .spans = {args.offsets.is_defined() ? args.offsets.data<int64_t>() : nullptr, int(R)},
      .groups = groups,
      .R = R,
      .N = N,
      .K = K,
      .c = {args.c.data<Result>(), args.c.row_stride(), args.accumulate}};
  const PersistentLaunch<Bf16Products, Scales::kNone, RowSpans, Result> persistent(
      args.a.rows(), {args.b.raw(), groups * (args.b_is_kn ? K : N), args.b.row_stride() * int64_t(sizeof(bfloat16))},
      args.b_is_kn, product);
  if (!persistent.is_possible()) return false;
  persistent.launch("grouped_gemm", stream);
  return true;
}
bool is_done_by_tiles(const GroupedWgrad& args, Stream& stream) {
  const int64_t R = args.dy.rows(), N = args.dy.cols(), K = args.x.cols();
  if (args.dy.dtype() != DType::kBFloat16 || R == 0 || N == 0 || K == 0) return false;
  const int groups = args.offsets.is_defined() ? int(args.offsets.num_elements() - 1) : 1;
  const PersistentProduct<bfloat16, SumSpans, float> product{
      .a = args.dy.data<bfloat16>(),
      .a_step = args.dy.row_stride(),
      .b = args.x.data<bfloat16>(),
      .b_step = args.x.row_stride(),
      .lines = rows_of(args.rows),
      .spans = {args.offsets.is_defined() ? args.offsets.data<int64_t>() : nullptr, /*block_offsets=*/nullptr, int(N),
                int(R), args.accumulate},
      .groups = groups,
      .R = groups * N,
      .N = K,
      .K = R,
      .c = {args.dw.data<float>(), args.dw.row_stride(), args.accumulate}};
  const PersistentLaunch<Bf16Products, Scales::kNone, SumSpans, float> persistent(
      N, {args.x.raw(), args.x.rows(), args.x.row_stride() * int64_t(sizeof(bfloat16))}, /*b_is_transposed=*/true,
      product);
  if (!persistent.is_possible()) return false;
  persistent.launch("grouped_wgrad", stream);
  return true;
}

}  // namespace

void grouped_gemm(const GroupedGemm& args, Stream& stream) {
  if (is_done_by_library(args, stream)) return;
  const int64_t R = args.c.rows(), N = args.c.cols(), K = args.a.cols();
  visit_float(args.a.dtype(), [&]<class Scalar>() {
    const Operand<Scalar> a{
        .data = args.a.data<Scalar>(), .line_step = args.a.row_stride(), .k_step = 1, .lines = rows_of(args.rows)};
    const int64_t b_stride = args.b.row_stride();
    const Operand<Scalar> b{
        .data = args.b.data<Scalar>(), .line_step = args.b_is_kn ? 1 : b_stride, .k_step = args.b_is_kn ? b_stride : 1};
    const int64_t b_group_step = b_stride * (args.b_is_kn ? K : N);
    visit_float(args.c.dtype(), [&]<class Result>() {
      if (is_done_by_tiles<Result>(args, stream)) return;
      const ResultMatrix<Result> c{args.c.data<Result>(), args.c.row_stride(), args.accumulate};
      launch_grouped_rows<TileOf<Scalar>>("grouped_gemm", a, b, b_group_step, 0, args.offsets, R, N, K, c, stream);
    });
  });
}

void grouped_wgrad(const GroupedWgrad& args, Stream& stream) {
  if (is_done_by_library(args, stream) || is_done_by_tiles(args, stream)) return;
  const int64_t R = args.dy.rows(), N = args.dy.cols(), K = args.x.cols();
  visit_float(args.dy.dtype(), [&]<class Scalar>() {
    const Operand<Scalar> dy{.data = args.dy.data<Scalar>(), .line_step = 1, .k_step = args.dy.row_stride()};
    const Operand<Scalar> x{.data = args.x.data<Scalar>(),
                            .line_step = 1,
                            .k_step = args.x.row_stride(),
                            .lines = nullptr,
                            .ks = rows_of(args.rows)};
    const ResultMatrix<float> dw{args.dw.data<float>(), args.dw.row_stride(), args.accumulate};
    launch_grouped_sums<TileOf<Scalar>>("grouped_wgrad", dy, x, args.offsets, {}, R, N, K, dw, stream);
  });
}

}  // namespace octet::kernels::cuda
