// From the rows of experts back to tokens (kernels/permute.h).
#pragma once

#include "core/autograd/tape.h"
#include "core/ops/numerics.h"

namespace octet {

// y[t] = base[t] + sum_k weights[t,k] * rows[row_of[t,k]].  rows: [R, D]; row_of: [T, K] int32; weights: [T, K]
// float32, base: [T, D] as rows, or not defined. All three may be on the tape.
// Backwards, drows[row_of[t,k]] = weights[t,k] * g(dy[t]) and dweights[t,k] = g(dy[t]) . rows[row_of[t,k]], with g as
// expert_gradients says.
Tensor combine(const Tensor& rows, const Tensor& row_of, const Tensor& weights, const Tensor& base,
               GradientWire expert_gradients = GradientWire::kActivation);

// The gradient of a token from those of its rows: dx[t] = sum_k drows[row_of[t,k]].
Tensor sum_rows_of_tokens(const Tensor& drows, const Tensor& row_of);

// g of a gradient: itself, or rounded to E4M3 rows.
Tensor round_gradient(const Tensor& dy, GradientWire wire);

}  // namespace octet
