#include "kernels/rms_norm.h"

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"

void rms_norm_forward(const RmsNormForward& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    const int64_t D = args.x.cols();
    const float* weight = args.weight.data<float>();
    float* rstd = args.rstd.data<float>();
    stream.parallel_for(args.x.rows(), 16, [&](int64_t t) {
      const Scalar* x = args.x.row<Scalar>(t);
      Scalar* y = args.y.row<Scalar>(t);
      f32x16 sum = splat(0.0f);
      for_lanes(D, [&](int64_t d, auto lanes) {
        const f32x16 v = lanes.load(x + d);
        sum = fma(v, v, sum);
      });
      const float r = 1.0f / std::sqrt(reduce_add(sum) / float(D) + args.eps);
      rstd[t] = r;
      for_lanes(
          D, [&](int64_t d, auto lanes) { lanes.store(y + d, lanes.load(x + d) * splat(r) * lanes.load(weight + d)); });
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
OCTET_CPU_KERNEL(rms_norm_backward, RmsNormBackward)
