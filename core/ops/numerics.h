// How a model computes: the recipe of its matrix products and what is counted about them.
#pragma once

#include "core/base/dtype.h"
#include "kernels/fp8_gemm.h"
#include "kernels/quantize.h"
#include "kernels/swiglu.h"

namespace octet {

enum class Recipe {
  kFp32,      // everything in float32
  kBf16,      // weights, activations and their gradients in bfloat16; sums, masters and main gradients in float32
  kFp8Block,  // as kBf16, and every linear layer but gate and head in block-scaled E4M3 (arXiv:2412.19437, section 3.3)
};

// The form in which the gradient of what experts made goes back to them. A property of the numbers, not of the way: it
// is the same where the experts are at hand.
enum class GradientWire {
  kActivation,  // as activations are
  kFp8,         // E4M3 rows: half the bytes between ranks, and one rounding more (arXiv:2412.19437, section 3.3.3)
};

// What quantisation did to each kind of tensor, and the limit of SwiGLU to gates and ups, since the counts were last
// cleared.
struct Fp8Counts {
  kernels::QuantizeStats weight;            // 128x128
  kernels::QuantizeStats activation;        // 1x128, inputs of linear layers and of SwiGLU
  kernels::QuantizeStats grad_output;       // 1x128, output gradients as dgrad reads them
  kernels::QuantizeStats wgrad_activation;  // 128x1
  kernels::QuantizeStats wgrad_grad;        // 128x1
  kernels::ClampCounts swiglu;              // in every recipe
};

struct Numerics {
  Recipe recipe = Recipe::kFp32;
  kernels::Emulation emulation = kernels::Emulation::kIdeal;
  GradientWire expert_gradients = GradientWire::kActivation;  // kFp8 in kFp8Block only
  Fp8Counts* health = nullptr;                                // null: nothing is counted

  // Those of products of another recipe with the same activation dtype.
  Numerics in(Recipe other) const {
    Numerics numerics = *this;
    numerics.recipe = other;
    if (!numerics.is_fp8()) numerics.expert_gradients = GradientWire::kActivation;
    return numerics;
  }
  bool is_fp8() const { return recipe == Recipe::kFp8Block; }
  // Of activations and their gradients.
  DType activation_dtype() const { return recipe == Recipe::kFp32 ? DType::kFloat32 : DType::kBFloat16; }
  kernels::QuantizeStats* stats(kernels::QuantizeStats Fp8Counts::*role) const {
    return health == nullptr ? nullptr : &(health->*role);
  }
};

}  // namespace octet
