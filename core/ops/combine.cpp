#include "core/ops/combine.h"

#include "core/ops/linear_input.h"
#include "kernels/permute.h"

namespace octet {

Tensor combine(const Tensor& rows, const Tensor& row_of, const Tensor& weights, const Tensor& base,
               GradientWire expert_gradients) {
  Tensor y = empty({row_of.rows(), rows.cols()}, rows.dtype(), rows.device());  // [T, D]
  kernels::combine_forward({.rows = rows, .row_of = row_of, .weights = weights, .base = base, .y = y}, y.stream());
  return record(
      "combine", y, {rows, weights, base},
      [rows = rows.detach(), row_of, weights = weights.detach(), expert_gradients](const Tensor& dy) -> Gradients {
        Tensor drows = empty_like(rows);                                         // [R, D]
        Tensor dweights = empty(weights.shape(), DType::kFloat32, dy.device());  // [T, K]
        kernels::combine_backward({.dy = round_gradient(dy, expert_gradients),
                                   .rows = rows,
                                   .row_of = row_of,
                                   .weights = weights,
                                   .drows = drows,
                                   .dweights = dweights},
                                  dy.stream());
        return {drows, dweights, dy};
      });
}

Tensor sum_rows_of_tokens(const Tensor& drows, const Tensor& row_of) {
  Tensor dx = empty({row_of.rows(), drows.cols()}, drows.dtype(), drows.device());
  kernels::combine_forward({.rows = drows, .row_of = row_of, .weights = {}, .base = {}, .y = dx}, dx.stream());
  return dx;
}

Tensor round_gradient(const Tensor& dy, GradientWire wire) {
  if (wire == GradientWire::kActivation) return dy;
  const AllocateAs workspace(MemoryCategory::kWorkspace);
  const Fp8Rows rows = quantize_rows(dy, nullptr);
  Tensor rounded = empty_like(dy);
  kernels::dequantize_rows({.codes = rows.codes, .scale = rows.scale, .x = rounded}, dy.stream());
  return rounded;
}

}  // namespace octet
