// y = x / sqrt(mean(x^2) + eps) * weight, over the last axis (arXiv:1910.07467; kernels/rms_norm.h).
#pragma once

#include "core/autograd/parameter.h"
#include "core/autograd/tape.h"
#include "core/ops/linear_input.h"

namespace octet {

// x: [T, D] float32 or bfloat16; weight: [D], float32. The gradient of weight is added to weight.grad().
Tensor rms_norm(const Tensor& x, Parameter& weight, float eps);

struct NormUse {
  bool in_high_precision = true;  // somebody reads y itself, which the FP8 recipe needs not write otherwise
  bool recompute = false;         // y, and its codes, are made again in the backward pass
};
// The same for linear layers: in the FP8 recipe y is quantised where it is made.
LinearInput rms_norm_input(const Tensor& x, Parameter& weight, float eps, const Numerics& numerics, const NormUse& use);

}  // namespace octet
