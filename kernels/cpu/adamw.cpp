#include "kernels/adamw.h"

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"

void adamw_step(const AdamwStep& args, Stream& stream) {
  // The bias corrections are near 1 - 1 at the first steps: float64, rounded once.
  const float m_correction = float(1.0 / (1.0 - std::pow(double(args.beta1), double(args.step))));
  const float v_correction = float(1.0 / (1.0 - std::pow(double(args.beta2), double(args.step))));
  const auto run = [&]<class Moment, class Weight, bool kHasWeight>() {
    float* master = args.master.data<float>();
    const float* grad = args.grad.data<float>();
    Moment *m = args.m.data<Moment>(), *v = args.v.data<Moment>();
    Weight* weight = args.weight.data<Weight>();
    const f32x16 beta1 = splat(args.beta1), beta2 = splat(args.beta2);
    const f32x16 rest1 = splat(1.0f - args.beta1), rest2 = splat(1.0f - args.beta2);
    const f32x16 keep = splat(1.0f - args.lr * args.weight_decay), rate = splat(args.lr), eps = splat(args.eps);
    const f32x16 grad_scale = splat(args.grad_scale);
    const f32x16 correct_m = splat(m_correction), correct_v = splat(v_correction);
    stream.parallel_chunks(args.master.num_elements(), 16384, [=](int64_t begin, int64_t end) {
      for_lanes(end - begin, [=](int64_t d, auto lanes) {
        const int64_t i = begin + d;
        const f32x16 g = lanes.load(grad + i) * grad_scale;
        const f32x16 new_m = fma(beta1, lanes.load(m + i), rest1 * g);
        const f32x16 new_v = fma(beta2, lanes.load(v + i), rest2 * g * g);
        const f32x16 step = (new_m * correct_m) / (sqrt(new_v * correct_v) + eps);
        const f32x16 p = fma(lanes.load(master + i), keep, -(rate * step));
        lanes.store(m + i, new_m);
        lanes.store(v + i, new_v);
        lanes.store(master + i, p);
        if constexpr (kHasWeight) lanes.store(weight + i, p);
      });
    });
  };
  visit_float(args.m.dtype(), [&]<class Moment>() {
    if (!args.weight.is_defined()) return run.template operator()<Moment, float, false>();
    visit_float(args.weight.dtype(), [&]<class Weight>() { run.template operator()<Moment, Weight, true>(); });
  });
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(adamw_step, AdamwStep)
