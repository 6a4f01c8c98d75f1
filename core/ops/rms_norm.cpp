#include "core/ops/rms_norm.h"

#include "kernels/rms_norm.h"

namespace octet {
namespace {

void check(const Tensor& x, const Parameter& weight) {
  require(weight.shape() == Shape{x.cols()} && weight.form() == WeightForm::kFloat32,
          "rms_norm: weight {} is {}; wanted float32 [{}], the last axis of x", weight.name(), weight.shape(),
          x.cols());
}

Tensor forward(const Tensor& x, const Parameter& weight, float eps, const Tensor& rstd) {
  Tensor y = empty_like(x);  // [T, D]
  kernels::rms_norm_forward({.x = x, .weight = weight.weight(), .y = y, .rstd = rstd, .eps = eps}, x.stream());
  return y;
}

// y: to be filled, or not defined.
Fp8Rows forward_fp8(const Tensor& x, const Parameter& weight, float eps, const Tensor& y, const Tensor& rstd,
                    kernels::QuantizeStats* stats) {
  Fp8Rows rows = empty_rows(x.rows(), x.cols(), x.device());
  kernels::rms_norm_forward_fp8({.x = x,
                                 .weight = weight.weight(),
                                 .y = y,
                                 .codes = rows.codes,
                                 .scale = rows.scale,
                                 .rstd = rstd,
                                 .stats = stats,
                                 .eps = eps},
                                x.stream());
  return rows;
}

// y may have no data.
Tensor record_norm(const Tensor& y, const Tensor& x, const Tensor& rstd, Parameter& weight) {
  return record("rms_norm", y, {x}, [x = x.detach(), rstd, &weight](const Tensor& dy) -> Gradients {
    Tensor dx = empty_like(x);  // [T, D]
    kernels::rms_norm_backward(
        {.dy = dy, .x = x, .weight = weight.weight(), .rstd = rstd, .dx = dx, .dweight = weight.grad()}, x.stream());
    return {dx};
  });
}

Tensor empty_rstd(const Tensor& x) { return empty({x.rows()}, DType::kFloat32, x.device()); }

}  // namespace

Tensor rms_norm(const Tensor& x, Parameter& weight, float eps) {
  check(x, weight);
  const Tensor rstd = empty_rstd(x), y = forward(x, weight, eps, rstd);
  return record_norm(y, x, rstd, weight);
}

LinearInput rms_norm_input(const Tensor& x, Parameter& weight, float eps, const Numerics& numerics,
                           const NormUse& use) {
  check(x, weight);
  const Tensor rstd = empty_rstd(x);
  const bool recomputes = use.recompute && is_recording();
  std::function<Tensor()> values_again;
  if (recomputes) {  // writes the same rstd again
    values_again = [x = x.detach(), &weight, eps, rstd] { return forward(x, weight, eps, rstd); };
  }
  if (!numerics.is_fp8()) {
    return {record_norm(forward(x, weight, eps, rstd), x, rstd, weight), numerics, std::move(values_again)};
  }
  const Tensor y = use.in_high_precision ? empty_like(x) : Tensor();
  Fp8Rows rows = forward_fp8(x, weight, eps, y, rstd, numerics.stats(&Fp8Counts::activation));
  std::function<Fp8Rows()> rows_again;
  if (recomputes) {
    rows_again = [x = x.detach(), &weight, eps, rstd] {
      return forward_fp8(x, weight, eps, /*y=*/{}, rstd, /*stats=*/nullptr);
    };
  }
  const Tensor place = y.is_defined() ? y : Tensor::without_data(x.shape(), x.dtype(), x.device());
  return {record_norm(place, x, rstd, weight),
          std::move(rows),
          numerics,
          y,
          std::move(values_again),
          std::move(rows_again)};
}

}  // namespace octet
