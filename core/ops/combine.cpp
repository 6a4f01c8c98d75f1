#include "core/ops/combine.h"

#include "core/ops/linear_input.h"
#include "kernels/permute.h"

namespace octet {

namespace {

// numbers: float32; y[i] = numbers[places[i]], in the shape of places.
Tensor pick(const Tensor& numbers, const Tensor& places) {
  const Tensor picked = empty({places.num_elements(), 1}, DType::kFloat32, numbers.device());
  kernels::gather_rows({.x = numbers.reshape({numbers.num_elements(), 1}),
                        .source = places.reshape({places.num_elements()}),
                        .y = picked},
                       numbers.stream());
  return picked.reshape(places.shape());
}

}  // namespace

Tensor combine(const Tensor& rows, const Tensor& row_of, const Tensor& base, GradientWire expert_gradients) {
  Tensor y = empty({row_of.rows(), rows.cols()}, rows.dtype(), rows.device());  // [T, D]
  kernels::combine_forward({.rows = rows, .row_of = row_of, .base = base, .y = y}, y.stream());
  return record("combine", y, {rows, base}, [expert_gradients](const Tensor& dy) -> Gradients {
    return {round_gradient(dy, expert_gradients), dy};
  });
}

Tensor weights_of_rows(const Tensor& weights, const Tensor& pairs, const Tensor& row_of) {
  return record("weights_of_rows", pick(weights, pairs), {weights},
                [row_of](const Tensor& dweights) -> Gradients { return {pick(dweights, row_of)}; });
}

Tensor sum_rows_of_tokens(const Tensor& drows, const Tensor& row_of) {
  Tensor dx = empty({row_of.rows(), drows.cols()}, drows.dtype(), drows.device());
  kernels::combine_forward({.rows = drows, .row_of = row_of, .base = {}, .y = dx}, dx.stream());
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
