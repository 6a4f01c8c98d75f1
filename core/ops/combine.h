// From the rows of experts back to tokens (kernels/permute.h).
#pragma once

#include "core/autograd/tape.h"
#include "core/ops/numerics.h"

namespace octet {

// y[t] = base[t] + sum_k rows[row_of[t,k]].  rows: [R, D]; row_of: [T, K] int32; base: [T, D] as rows, or not defined.
// Both may be on the tape. All rows of a token have one gradient, g(dy[t]) with g as expert_gradients says, so that the
// gradient of rows is given as [T, D], for swiglu_ffn to read through its source.
Tensor combine(const Tensor& rows, const Tensor& row_of, const Tensor& base,
               GradientWire expert_gradients = GradientWire::kActivation);

// weights: [T, K] float32, on the tape; pairs: [R] int32, where row r finds its own. [R].
Tensor weights_of_rows(const Tensor& weights, const Tensor& pairs, const Tensor& row_of);

// The gradient of a token from those of its rows: dx[t] = sum_k drows[row_of[t,k]].
Tensor sum_rows_of_tokens(const Tensor& drows, const Tensor& row_of);

// g of a gradient: itself, or rounded to E4M3 rows.
Tensor round_gradient(const Tensor& dy, GradientWire wire);

}  // namespace octet
