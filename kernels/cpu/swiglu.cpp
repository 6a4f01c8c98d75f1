#include "kernels/swiglu.h"

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"

// Rows that one thread takes at a time: about 16384 elements of h.
OCTET_INLINE int64_t swiglu_grain(int64_t F) { return std::max<int64_t>(1, 8192 / std::max<int64_t>(1, F)); }

void swiglu_forward(const SwigluForward& args, Stream& stream) {
  visit_float(args.h.dtype(), [&]<class Scalar>() {
    const int64_t F = args.y.cols();
    stream.parallel_for(args.y.rows(), swiglu_grain(F), [&](int64_t r) {
      const Scalar* gate = args.h.row<Scalar>(r);
      const Scalar* up = gate + F;
      Scalar* y = args.y.row<Scalar>(r);
      for_lanes(F, [=](int64_t f, auto lanes) {
        const f32x16 g = lanes.load(gate + f);
        lanes.store(y + f, g / (splat(1.0f) + exp(-g)) * lanes.load(up + f));
      });
    });
  });
}

void swiglu_backward(const SwigluBackward& args, Stream& stream) {
  visit_float(args.h.dtype(), [&]<class Scalar>() {
    const int64_t F = args.dy.cols();
    stream.parallel_for(args.dy.rows(), swiglu_grain(F), [&](int64_t r) {
      const Scalar* dy = args.dy.row<Scalar>(r);
      const Scalar* gate = args.h.row<Scalar>(r);
      Scalar* dgate = args.dh.row<Scalar>(r);
      for_lanes(F, [=](int64_t f, auto lanes) {
        const f32x16 g = lanes.load(gate + f), up = lanes.load(gate + F + f), d = lanes.load(dy + f);
        const f32x16 s = sigmoid(g);
        const f32x16 slope = s * fma(g, splat(1.0f) - s, splat(1.0f));
        lanes.store(dgate + f, d * up * slope);
        lanes.store(dgate + F + f, d * (g * s));
      });
    });
  });
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(swiglu_forward, SwigluForward)
OCTET_CPU_KERNEL(swiglu_backward, SwigluBackward)
