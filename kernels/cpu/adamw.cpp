#include "kernels/adamw.h"

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

template <class Moment>
class Update {
 public:
  explicit Update(const AdamwStep& args)
      : master_(args.master.data<float>()),
        grad_(args.grad.data<float>()),
        m_(args.m.data<Moment>()),
        v_(args.v.data<Moment>()),
        beta1_(splat(args.beta1)),
        beta2_(splat(args.beta2)),
        rest1_(splat(1.0f - args.beta1)),
        rest2_(splat(1.0f - args.beta2)),
        keep_(splat(1.0f - args.factors->lr * args.weight_decay)),
        rate_(splat(args.factors->lr)),
        eps_(splat(args.eps)),
        grad_scale_(splat(args.factors->grad_scale)),
        correct_m_(splat(args.factors->correct_m)),
        correct_v_(splat(args.factors->correct_v)) {}

  // Elements begin .. end - 1; receive(d, lanes, p) gets the new masters, d counted from begin.
  template <class Receive>
  OCTET_INLINE void run(int64_t begin, int64_t end, Receive&& receive) const {
    for_lanes(end - begin, [&](int64_t d, auto lanes) OCTET_INLINE_LAMBDA {
      const int64_t i = begin + d;
      const f32x16 g = lanes.load(grad_ + i) * grad_scale_;
      const f32x16 new_m = fma(beta1_, lanes.load(m_ + i), rest1_ * g);
      const f32x16 new_v = fma(beta2_, lanes.load(v_ + i), rest2_ * g * g);
      const f32x16 step = (new_m * correct_m_) / (sqrt(new_v * correct_v_) + eps_);
      const f32x16 p = fma(lanes.load(master_ + i), keep_, -(rate_ * step));
      lanes.store(m_ + i, new_m);
      lanes.store(v_ + i, new_v);
      lanes.store(master_ + i, p);
      receive(d, lanes, p);
    });
  }

 private:
  float* master_;
  const float* grad_;
  Moment *m_, *v_;
  f32x16 beta1_, beta2_, rest1_, rest2_, keep_, rate_, eps_, grad_scale_, correct_m_, correct_v_;
};

template <class Moment>
void step_flat(const AdamwStep& args, Stream& stream) {
  const Update<Moment> update(args);
  const auto run = [&](auto receive_at) {
    stream.parallel_chunks(args.master.num_elements(), 16384,
                           [&](int64_t begin, int64_t end) { update.run(begin, end, receive_at(begin)); });
  };
  if (!args.weight.is_defined()) return run([](int64_t) { return [](int64_t, auto, f32x16) {}; });
  visit_float(args.weight.dtype(), [&]<class Weight>() {
    run([to = args.weight.data<Weight>()](int64_t begin) {
      return [to = to + begin](int64_t d, auto lanes, f32x16 p) { lanes.store(to + d, p); };
    });
  });
}

// A task updates 128 rows of a matrix, whole, since memory is fastest read in long pieces, and then quantises its tiles
// from a copy in cache.
template <class Moment>
void step_blocks(const AdamwStep& args, Stream& stream) {
  constexpr int64_t kColumns = 1024;  // 256 KiB of copy at most
  const Update<Moment> update(args);
  const Shape& shape = args.master.shape();
  const int64_t G = shape.rank() == 3 ? shape[0] : 1, N = shape[-2], K = shape[-1];
  const int64_t n_blocks = (N + kBlock - 1) / kBlock, pieces = (K + kColumns - 1) / kColumns;
  visit_flag(args.stats != nullptr, [&](auto counting) {
    stream.parallel_for(G * n_blocks * pieces, [&](int64_t task) {
      thread_local std::vector<bfloat16> copy(size_t(kBlock * kColumns));
      const int64_t k0 = task % pieces * kColumns, nb = task / pieces % n_blocks, g = task / pieces / n_blocks;
      const int64_t first = g * N + nb * kBlock, rows = std::min(kBlock, N - nb * kBlock);
      const int64_t columns = std::min(kColumns, K - k0);
      bfloat16* const rounded = copy.data();
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t begin = (first + r) * K + k0;
        update.run(begin, begin + columns,
                   [to = rounded + r * kColumns](int64_t d, auto lanes, f32x16 p)
                       OCTET_INLINE_LAMBDA { lanes.store(to + d, p); });
      }
      Counts counts;
      for (int64_t k = 0; k < columns; k += kBlock) {
        args.code_scale.row<float>(g * n_blocks + nb)[(k0 + k) / kBlock] = quantize_block<counting>(
            rows, std::min(kBlock, columns - k),
            [=](int64_t r) -> const bfloat16* { return rounded + r * kColumns + k; },
            args.codes.row<uint8_t>(first) + k0 + k, args.codes.row_stride(), counts);
      }
      counts.add_to(args.stats, rows * columns);
    });
  });
}

}  // namespace

void adamw_step(const AdamwStep& args, Stream& stream) {
  if (args.factors->is_left_out != 0) return;
  visit_float(args.m.dtype(), [&]<class Moment>() {
    if (args.codes.is_defined()) {
      step_blocks<Moment>(args, stream);
    } else {
      step_flat<Moment>(args, stream);
    }
  });
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(adamw_step, AdamwStep)
