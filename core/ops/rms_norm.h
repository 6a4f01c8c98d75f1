// y = x / sqrt(mean(x^2) + eps) * weight, over the last axis (arXiv:1910.07467; kernels/rms_norm.h).
#pragma once

#include <functional>

#include "core/autograd/parameter.h"
#include "core/autograd/tape.h"

namespace octet {

struct RmsNormOutput {
  Tensor y;                       // [T, D] as x
  std::function<Tensor()> again;  // makes the bits of y anew, from x; for a LinearInput that is not to be kept
};

// x: [T, D] float32 or bfloat16; weight: [D], float32. The gradient of weight is added to weight.grad().
RmsNormOutput rms_norm(const Tensor& x, Parameter& weight, float eps);

}  // namespace octet
