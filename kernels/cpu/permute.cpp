#include "kernels/permute.h"

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"

// Rows that one thread takes at a time: about 16384 elements.
OCTET_INLINE int64_t permute_grain(int64_t columns) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns));
}

// A stable counting sort: counts, their running sum, and each pair to the next free place of its expert.
void build_permutation(const BuildPermutation& args, Stream&) {
  const int64_t T = args.indices.rows(), K = args.indices.cols();
  const int64_t E = args.offsets.num_elements() - 1;
  int64_t* offsets = args.offsets.data<int64_t>();
  int32_t *source = args.source.data<int32_t>(),
          *pairs = args.pairs.is_defined() ? args.pairs.data<int32_t>() : nullptr;
  std::fill_n(offsets, E + 1, int64_t(0));
  for (int64_t t = 0; t < T; ++t) {
    const int32_t* experts = args.indices.row<int32_t>(t);
    for (int64_t k = 0; k < K; ++k) ++offsets[experts[k] + 1];
  }
  for (int64_t e = 0; e < E; ++e) offsets[e + 1] += offsets[e];
  std::vector<int64_t> next(offsets, offsets + E);
  for (int64_t t = 0; t < T; ++t) {
    const int32_t* experts = args.indices.row<int32_t>(t);
    int32_t* row_of = args.row_of.row<int32_t>(t);
    for (int64_t k = 0; k < K; ++k) {
      const int64_t r = next[size_t(experts[k])]++;
      row_of[k] = int32_t(r);
      source[r] = int32_t(t);
      if (pairs != nullptr) pairs[r] = int32_t(t * K + k);
    }
  }
}

void gather_rows(const GatherRows& args, Stream& stream) {
  const int64_t size = size_of(args.x.dtype()), bytes = args.x.cols() * size;
  const int32_t* source = args.source.data<int32_t>();
  const char* x = args.x.data<char>();
  char* y = args.y.data<char>();
  const int64_t x_stride = args.x.row_stride() * size, y_stride = args.y.row_stride() * size;
  const int64_t R = rows_there(args.num_rows, args.y.rows());
  stream.parallel_for(R, permute_grain(args.x.cols()), [=, skips = args.skips](int64_t r) {
    if (skips && source[r] == -1) return;
    std::memcpy(y + r * y_stride, x + source[r] * x_stride, size_t(bytes));
  });
}

void combine_forward(const CombineForward& args, Stream& stream) {
  visit_float(args.y.dtype(), [&]<class Scalar>() {
    const int64_t D = args.y.cols(), K = args.row_of.cols(), R = args.rows.rows(), T = args.y.rows();
    const auto row = [&args, R](int64_t r) {
      return r < R ? args.rows.row<Scalar>(r) : args.more_rows.row<Scalar>(r - R);
    };
    stream.parallel_for(T, permute_grain(D * (K + 1)), [&](int64_t t) {
      const int32_t *row_of = args.row_of.row<int32_t>(t), *next = args.row_of.row<int32_t>(std::min(t + 1, T - 1));
      const Scalar* base = args.base.is_defined() ? args.base.row<Scalar>(t) : nullptr;
      Scalar* y = args.y.row<Scalar>(t);
      // In registers, so that a row is looked up once for all of them.
      constexpr int kVectors = 4;
      int64_t d = 0;
      for (; d + 16 * kVectors <= D; d += 16 * kVectors) {
        f32x16 sum[kVectors];
        for_constants<kVectors>(
            [&](auto i) OCTET_INLINE_LAMBDA { sum[i] = base == nullptr ? splat(0.0f) : load(base + d + 16 * i); });
        for (int64_t k = 0; k < K; ++k) {
          const Scalar* from = row(row_of[k]) + d;
          // The rows of a token lie anywhere, and the processor would see where only when it is there.
          prefetch(row(next[k]) + d, 16 * kVectors);
          for_constants<kVectors>([&](auto i) OCTET_INLINE_LAMBDA { sum[i] = sum[i] + load(from + 16 * i); });
        }
        for_constants<kVectors / 2>([&](auto i)
                                        OCTET_INLINE_LAMBDA { store_two(y + d + 32 * i, sum[2 * i], sum[2 * i + 1]); });
      }
      for_lanes(D - d, [&](int64_t rest, auto lanes) {
        const int64_t at = d + rest;
        f32x16 sum = base == nullptr ? splat(0.0f) : lanes.load(base + at);
        for (int64_t k = 0; k < K; ++k) sum = sum + lanes.load(row(row_of[k]) + at);
        lanes.store(y + at, sum);
      });
    });
  });
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(build_permutation, BuildPermutation)
OCTET_CPU_KERNEL(gather_rows, GatherRows)
OCTET_CPU_KERNEL(combine_forward, CombineForward)
