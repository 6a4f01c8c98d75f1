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

constexpr int64_t kRowsTogether = 16;  // rows that one thread takes at a time

template <class Scalar>
OCTET_INLINE float rstd_of(const Scalar* x, int64_t D, float eps) {
  f32x16 sum = splat(0.0f);
  for_lanes(D, [&](int64_t d, auto lanes) {
    const f32x16 v = lanes.load(x + d);
    sum = fma(v, v, sum);
  });
  return 1.0f / std::sqrt(reduce_add(sum) / float(D) + eps);
}
template <class Scalar>
OCTET_INLINE void scale_row(const Scalar* x, float rstd, const float* weight, Scalar* y, int64_t D) {
  for_lanes(
      D, [=](int64_t d, auto lanes) { lanes.store(y + d, lanes.load(x + d) * splat(rstd) * lanes.load(weight + d)); });
}

}  // namespace

void rms_norm_forward(const RmsNormForward& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    const int64_t D = args.x.cols();
    const float* weight = args.weight.data<float>();
    float* rstd = args.rstd.data<float>();
    stream.parallel_for(args.x.rows(), kRowsTogether, [&](int64_t t) {
      const Scalar* x = args.x.row<Scalar>(t);
      rstd[t] = rstd_of(x, D, args.eps);
      scale_row(x, rstd[t], weight, args.y.row<Scalar>(t), D);
    });
  });
}

void rms_norm_forward_fp8(const RmsNormForwardFp8& args, Stream& stream) {
  const int64_t D = args.x.cols();
  const float* weight = args.weight.data<float>();
  float* rstd = args.rstd.data<float>();
  visit_flag(args.stats != nullptr, [&](auto counting) {
    stream.parallel_chunks(args.x.rows(), kRowsTogether, [&](int64_t begin, int64_t end) {
      std::vector<bfloat16> scratch(args.y.is_defined() ? 0 : size_t(kRowsTogether * D));
      Counts counts;
      RowBlocks<counting> blocks(counts);
      for (int64_t t = begin; t < end; ++t) {
        const bfloat16* x = args.x.row<bfloat16>(t);
        bfloat16* y = args.y.is_defined() ? args.y.row<bfloat16>(t) : scratch.data() + (t - begin) * D;
        rstd[t] = rstd_of(x, D, args.eps);
        scale_row(x, rstd[t], weight, y, D);
        quantize_row<counting>(y, D, args.codes.row<uint8_t>(t), args.scale.row<float>(t), blocks, counts);
      }
      blocks.flush();
      counts.add_to(args.stats, (end - begin) * D);
    });
  });
}

void rms_norm_backward(const RmsNormBackward& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    const int64_t T = args.x.rows(), D = args.x.cols();
    const float* weight = args.weight.data<float>();
    const float* rstd = args.rstd.data<float>();
    const int64_t blocks = (T + kRmsNormTokenBlock - 1) / kRmsNormTokenBlock;
    std::vector<float> partial(size_t(blocks * D), 0.0f);  // [blocks, D], each block's part of dweight
    stream.parallel_for(blocks, [&](int64_t block) {
      float* dweight = partial.data() + block * D;
      const int64_t end = std::min(T, (block + 1) * kRmsNormTokenBlock);
      for (int64_t t = block * kRmsNormTokenBlock; t < end; ++t) {
        const Scalar* x = args.x.row<Scalar>(t);
        const Scalar* dy = args.dy.row<Scalar>(t);
        Scalar* dx = args.dx.row<Scalar>(t);
        f32x16 dot = splat(0.0f);
        for_lanes(D, [&](int64_t d, auto lanes) {
          dot = fma(lanes.load(dy + d) * lanes.load(weight + d), lanes.load(x + d), dot);
        });
        const float r = rstd[t];
        const float along_x = r * r * (reduce_add(dot) / float(D));
        for_lanes(D, [&](int64_t d, auto lanes) {
          const f32x16 xd = lanes.load(x + d), dyd = lanes.load(dy + d);
          lanes.store(dweight + d, fma(dyd * splat(r), xd, lanes.load(dweight + d)));
          lanes.store(dx + d, splat(r) * (dyd * lanes.load(weight + d) - xd * splat(along_x)));
        });
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
