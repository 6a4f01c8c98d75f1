// The gated feed-forward layer, for one weight or for a group of experts (arXiv:2002.05202).
//   h = x w13^T [R, 2F],   y[r,:] = weights[r] * silu(h[r,:F]) * h[r,F:] [R, F],   out = y w2^T [R, D]
#pragma once

#include "core/base/environment.h"
#include "core/ops/product.h"

namespace octet {

struct SwigluOptions {
  float limit = 0.0f;      // of gate and up (kernels/swiglu.h); 0: none
  bool recompute = false;  // y is made again in the backward pass
  bool in_gemm = false;  // in FP8: the first product makes the codes of h and y (kernels/fp8_swiglu_gemm.h), same bits
};

// By default what the options say. The environment variable OCTET_SWIGLU_IN_GEMM=auto|off|on says otherwise.
Wanted swiglu_in_gemm();
void set_swiglu_in_gemm(Wanted wanted);

// input: [T, D], read through groups.source where that is defined, so the rows of experts are never gathered in memory;
// input.x() is then the place of those R rows on the tape, and the gradient of out is read in the same way: row r of it
// is row groups.source[r] of what the tape brings. weights: [R] float32, of the router, or not defined: all 1. w13:
// [G, 2F, D] or [2F, D], gate rows first; w2: [G, D, F]. Kept for the backward pass: h, and in float32 and bfloat16 y
// too unless options.recompute is set. The FP8 recipe keeps h in E4M3 only, and its backward pass makes y from that.
// Nothing is kept for the gradient of weights: it is dy . y / weights, dy the gradient of y that the backward pass
// makes.
Tensor swiglu_ffn(const LinearInput& input, const RowGroups& groups, const Tensor& weights, Parameter& w13,
                  Parameter& w2, const SwigluOptions& options);

}  // namespace octet
