// One AdamW step (arXiv:1711.05101) on a flat piece of parameters, in one pass.
//   g = grad * grad_scale;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   p = p (1 - lr * weight_decay) - lr * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
// Arithmetic is float32; moments stored in bfloat16 round to nearest and the update uses them before rounding.
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

struct AdamwStep {
  View master;     // [N] float32
  ConstView grad;  // [N] float32
  View m, v;       // [N] float32 or bfloat16
  View weight;     // [N] float32 or bfloat16: receives the new master, rounded; not defined: none
  float lr, beta1, beta2, eps, weight_decay, grad_scale;
  int64_t step;  // 1 for the first

  KernelCost cost() const {
    return {.name = "adamw_step", .bytes = bytes_of(master, grad, m, v) + bytes_of(master, m, v, weight)};
  }
};
namespace cpu {
void adamw_step(const AdamwStep& args, Stream& stream);
}  // namespace cpu
inline void adamw_step(const AdamwStep& args, Stream& stream) { dispatch<cpu::adamw_step>(args, stream); }

}  // namespace octet::kernels
