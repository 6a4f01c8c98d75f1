#include "core/ops/rms_norm.h"

#include "kernels/rms_norm.h"

namespace octet {

RmsNormOutput rms_norm(const Tensor& x, Parameter& weight, float eps) {
  require(weight.shape() == Shape{x.cols()} && weight.form() == WeightForm::kFloat32,
          "rms_norm: weight {} is {}; wanted float32 [{}], the last axis of x", weight.name(), weight.shape(),
          x.cols());
  const auto forward = [x = x.detach(), &weight, eps](const Tensor& rstd) {
    Tensor y = empty_like(x);  // [T, D]
    kernels::rms_norm_forward({.x = x, .weight = weight.weight(), .y = y, .rstd = rstd, .eps = eps}, x.stream());
    return y;
  };
  const Tensor rstd = empty({x.rows()}, DType::kFloat32, x.device());
  Tensor y = forward(rstd);
  if (!is_recording()) return {y, {}};
  y = record("rms_norm", y, {x}, [x = x.detach(), rstd, &weight](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(x);  // [T, D]
    kernels::rms_norm_backward(
        {.dy = dy, .x = x, .weight = weight.weight(), .rstd = rstd, .dx = dx, .dweight = weight.grad()}, x.stream());
    return {dx};
  });
  return {y, [forward, rstd] { return forward(rstd); }};  // writes the same rstd again
}

}  // namespace octet
