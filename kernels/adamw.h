// One AdamW step (arXiv:1711.05101) on a parameter, and the forms in which products read it, in one pass. Nothing
// changes where the step is left out.
//   g = grad * grad_scale;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   p = p (1 - lr * weight_decay) - lr * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
// Arithmetic is float32; moments stored in bfloat16 round to nearest and the update uses them before rounding.
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"
#include "kernels/quantize.h"
#include "kernels/update_factors.h"

namespace octet::kernels {

struct AdamwStep {
  View master;     // [N] float32; [G, N, K] or [N, K] where codes is defined
  ConstView grad;  // as master
  View m, v;       // as master, float32 or bfloat16
  View weight;     // as master, float32 or bfloat16: receives the new master, rounded; not defined: none
  View codes = {},
       code_scale = {};            // what QuantizeBlocks makes of the new master rounded to bfloat16; not defined: none
  QuantizeStats* stats = nullptr;  // of the codes; null: none
  const UpdateFactors* factors;    // lr, grad_scale and 1 / (1 - beta^step)
  float beta1, beta2, eps, weight_decay;

  KernelCost cost() const {
    return {.name = "adamw_step",
            .bytes = bytes_of(master, grad, m, v) + bytes_of(master, m, v, weight, codes, code_scale)};
  }
};
namespace cpu {
void adamw_step(const AdamwStep& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void adamw_step(const AdamwStep& args, Stream& stream);
}  // namespace cuda
inline void adamw_step(const AdamwStep& args, Stream& stream) {
  dispatch<cpu::adamw_step, cuda::adamw_step>(args, stream);
}

}  // namespace octet::kernels
