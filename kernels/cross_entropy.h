// Softmax cross-entropy of one chunk of logits, and its gradient.
//   loss[t] = log sum_v exp(logits[t,v]) - logits[t, targets[t]];   0 where targets[t] is -1
//   dlogits[t,v] = grad_scale * (softmax(logits[t,:])[v] - (v == targets[t]));   0 where targets[t] is -1
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

struct CrossEntropy {
  ConstView logits;   // [T, V] float32
  ConstView targets;  // [T] int32, in [0, V) or -1
  View loss;          // [T] float32
  View dlogits;       // [T, V] float32 or bfloat16, or not defined; may be logits itself where float32
  float grad_scale;

  KernelCost cost() const { return {.name = "cross_entropy", .bytes = bytes_of(logits, targets, loss, dlogits)}; }
};
namespace cpu {
void cross_entropy(const CrossEntropy& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void cross_entropy(const CrossEntropy& args, Stream& stream);
}  // namespace cuda
inline void cross_entropy(const CrossEntropy& args, Stream& stream) {
  dispatch<cpu::cross_entropy, cuda::cross_entropy>(args, stream);
}

}  // namespace octet::kernels
