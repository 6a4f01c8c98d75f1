#include "kernels/cross_entropy.h"

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"

// Three passes over a row, which the second-level cache holds: the maximum; exp(x - max), kept, and its sum; and the
// product with grad_scale / sum. A bfloat16 gradient keeps its exponentials in a float32 row of its own.
void cross_entropy(const CrossEntropy& args, Stream& stream) {
  const int64_t T = args.logits.rows(), V = args.logits.cols();
  const int32_t* targets = args.targets.data<int32_t>();
  float* loss = args.loss.data<float>();
  const bool wants_gradient = args.dlogits.is_defined();
  const auto run = [&]<class Gradient>() {
    constexpr bool kNarrow = !std::is_same_v<Gradient, float>;
    stream.parallel_chunks(T, 8, [&](int64_t first, int64_t last) {
      std::vector<float> kept(kNarrow ? size_t(V) : 0);
      for (int64_t t = first; t < last; ++t) {
        const float* x = args.logits.row<float>(t);
        Gradient* dx = wants_gradient ? args.dlogits.row<Gradient>(t) : nullptr;
        if (targets[t] < 0) {
          loss[t] = 0.0f;
          if (wants_gradient) {
            for_lanes(V, [=](int64_t v, auto lanes) { lanes.store(dx + v, splat(0.0f)); });
          }
          continue;
        }
        const float target = x[targets[t]];
        const f32x16 lowest = splat(-std::numeric_limits<float>::infinity());
        f32x16 largest = lowest;
        int64_t whole = V - V % 16;
        for (int64_t v = 0; v < whole; v += 16) largest = max(load(x + v), largest);
        float row_max = reduce_max(largest);
        for (int64_t v = whole; v < V; ++v) row_max = x[v] > row_max ? x[v] : row_max;
        f32x16 sums = splat(0.0f);
        float* exponentials = nullptr;
        if constexpr (kNarrow) {
          exponentials = kept.data();
        } else if (wants_gradient) {
          exponentials = dx;
        }
        for (int64_t v = 0; v < whole; v += 16) {
          const f32x16 e = exp(load(x + v) - splat(row_max));
          if (exponentials != nullptr) store(exponentials + v, e);
          sums += e;
        }
        if (whole < V) {
          // The lanes past the end must add nothing: they are given -infinity.
          float tail[16];
          store(tail, lowest);
          std::copy(x + whole, x + V, tail);
          const f32x16 e = exp(load(tail) - splat(row_max));
          if (exponentials != nullptr) store_first(exponentials + whole, e, V - whole);
          sums += e;
        }
        const float sum = reduce_add(sums);
        loss[t] = log(sum) + (row_max - target);
        if (!wants_gradient) continue;
        const float factor = args.grad_scale / sum;
        const float at_target = exponentials[targets[t]] * factor - args.grad_scale;
        for_lanes(V, [=](int64_t v, auto lanes) { lanes.store(dx + v, lanes.load(exponentials + v) * splat(factor)); });
        dx[targets[t]] = Gradient(at_target);
      }
    });
  };
  if (wants_gradient && args.dlogits.dtype() == DType::kBFloat16) {
    run.template operator()<bfloat16>();
  } else {
    run.template operator()<float>();
  }
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(cross_entropy, CrossEntropy)
