#include "kernels/rms_norm.h"

#include <atomic>

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"
//
#include "kernels/cpu/fp8_simd.inc"
//
#include "kernels/cpu/bf16_simd.inc"
#include "kernels/cpu/quantize_tile.inc"

namespace {

constexpr int64_t kRowsTogether = 16;  // that one thread takes at a time, and whose sums are one vector

// Rows whose steps are done together, since one row alone is a long chain from its sum to its last number: as many as
// stay in the nearest cache between the steps.
OCTET_INLINE int64_t rows_of_group(int64_t D) {
  return std::clamp<int64_t>(6144 / std::max<int64_t>(1, D), 1, kRowsTogether);
}

// rstd of n <= kRowsTogether rows.
template <class Scalar>
OCTET_INLINE void make_rstd(const ConstView& x, int64_t first, int64_t n, float eps, float* rstd) {
  const int64_t D = x.cols();
  static_assert(kRowsTogether == 16);
  float sums[kRowsTogether] = {};
  for (int64_t i = 0; i < n; ++i) {
    f32x16 sum = splat(0.0f);
    for_lanes(D, [row = x.row<Scalar>(first + i), &sum](int64_t d, auto lanes) {
      const f32x16 v = lanes.load(row + d);
      sum = fma(v, v, sum);
    });
    sums[i] = reduce_add(sum);
  }
  const f32x16 all = splat(1.0f) / sqrt(load(sums) / splat(float(D)) + splat(eps));
  store(sums, all);
  std::copy_n(sums, n, rstd);
}
template <class Scalar>
OCTET_INLINE void scale_row(const Scalar* x, float rstd, const float* weight, Scalar* y, int64_t D) {
  const auto scaled = [=](int64_t d, auto lanes)
                          OCTET_INLINE_LAMBDA { return lanes.load(x + d) * splat(rstd) * lanes.load(weight + d); };
  int64_t d = 0;
  for (; d + 32 <= D; d += 32) store_two(y + d, scaled(d, AllLanes()), scaled(d + 16, AllLanes()));
  for_lanes(D - d, [=](int64_t rest, auto lanes) { lanes.store(y + d + rest, scaled(d + rest, lanes)); });
}

}  // namespace

void rms_norm_forward(const RmsNormForward& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    const int64_t D = args.x.cols();
    const float* weight = args.weight.data<float>();
    float* rstd = args.rstd.data<float>();
    const int64_t group = rows_of_group(D);
    stream.parallel_chunks(args.x.rows(), kRowsTogether, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += group) {
        const int64_t n = std::min(group, end - first);
        make_rstd<Scalar>(args.x, first, n, args.eps, rstd + first);
        for (int64_t t = first; t < first + n; ++t) {
          scale_row(args.x.row<Scalar>(t), rstd[t], weight, args.y.row<Scalar>(t), D);
        }
      }
    });
  });
}

void rms_norm_forward_fp8(const RmsNormForwardFp8& args, Stream& stream) {
  const int64_t D = args.x.cols(), group = rows_of_group(D);
  const float* weight = args.weight.data<float>();
  float* rstd = args.rstd.data<float>();
  visit_flag(args.stats != nullptr, [&](auto counting) {
    stream.parallel_chunks(args.x.rows(), kRowsTogether, [&](int64_t begin, int64_t end) {
      std::vector<bfloat16> scratch(args.y.is_defined() ? 0 : size_t(group * D));
      Counts counts;
      RowBlocks<counting> blocks(counts);
      for (int64_t first = begin; first < end; first += group) {
        const int64_t n = std::min(group, end - first);
        make_rstd<bfloat16>(args.x, first, n, args.eps, rstd + first);
        for (int64_t t = first; t < first + n; ++t) {
          bfloat16* y = args.y.is_defined() ? args.y.row<bfloat16>(t) : scratch.data() + (t - first) * D;
          scale_row(args.x.row<bfloat16>(t), rstd[t], weight, y, D);
          quantize_row<counting>(y, D, args.codes.row<uint8_t>(t), args.scale.row<float>(t), blocks);
        }
        blocks.flush();
      }
      counts.add_to(args.stats, (end - begin) * D);
    });
  });
}

void rms_norm_backward(const RmsNormBackward& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    // A group's rows of x and dy are read twice: wide ones would be out of the nearest cache by then.
    const int64_t T = args.x.rows(), D = args.x.cols(), group = D <= 512 ? kRowsTogether : 1;
    const float* weight = args.weight.data<float>();
    const float* rstd = args.rstd.data<float>();
    const int64_t blocks = (T + kRmsNormTokenBlock - 1) / kRmsNormTokenBlock;
    std::vector<float> partial(size_t(blocks * D), 0.0f);  // [blocks, D], each block's part of dweight
    stream.parallel_for(blocks, [&](int64_t block) {
      float* dweight = partial.data() + block * D;
      const int64_t end = std::min(T, (block + 1) * kRmsNormTokenBlock);
      for (int64_t first = block * kRmsNormTokenBlock; first < end; first += group) {
        const int64_t n = std::min(group, end - first);
        float along_x[kRowsTogether];
        for (int64_t i = 0; i < n; ++i) {
          const Scalar *x = args.x.row<Scalar>(first + i), *dy = args.dy.row<Scalar>(first + i);
          f32x16 dot = splat(0.0f);
          for_lanes(D, [&](int64_t d, auto lanes) {
            dot = fma(lanes.load(dy + d) * lanes.load(weight + d), lanes.load(x + d), dot);
          });
          const float r = rstd[first + i];
          along_x[i] = r * r * (reduce_add(dot) / float(D));
        }
        for (int64_t i = 0; i < n; ++i) {
          const Scalar *x = args.x.row<Scalar>(first + i), *dy = args.dy.row<Scalar>(first + i);
          Scalar* dx = args.dx.row<Scalar>(first + i);
          const f32x16 rstd_of_row = splat(rstd[first + i]), along = splat(along_x[i]);
          const auto finish = [=](int64_t d, auto lanes) OCTET_INLINE_LAMBDA {
            const f32x16 xd = lanes.load(x + d), dyd = lanes.load(dy + d);
            lanes.store(dweight + d, fma(dyd * rstd_of_row, xd, lanes.load(dweight + d)));
            return rstd_of_row * (dyd * lanes.load(weight + d) - xd * along);
          };
          int64_t d = 0;
          for (; d + 32 <= D; d += 32) {
            const f32x16 here = finish(d, AllLanes()), behind = finish(d + 16, AllLanes());
            store_two(dx + d, here, behind);
          }
          for_lanes(D - d, [&](int64_t rest, auto lanes) { lanes.store(dx + d + rest, finish(d + rest, lanes)); });
        }
      }
    });
    float* dweight = args.dweight.data<float>();
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t d = 0; d < D; ++d) dweight[d] += partial[size_t(block * D + d)];
    }
  });
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(rms_norm_forward, RmsNormForward)
OCTET_CPU_KERNEL(rms_norm_forward_fp8, RmsNormForwardFp8)
OCTET_CPU_KERNEL(rms_norm_backward, RmsNormBackward)
