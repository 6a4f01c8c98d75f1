// What every layer of a model shares: its numerics, what it recomputes, and the pass it is in.
#pragma once

#include <functional>

#include "core/nn/precision_config.h"
#include "core/ops/swiglu_ffn.h"
#include "core/tensor/tensor.h"

namespace octet {

// Parts of a block whose forward pass is run again in the backward pass rather than kept. The numbers stay the same.
struct RecomputeParts {
  bool norm = false;       // the outputs of RMSNorm
  bool swiglu = false;     // the outputs of SwiGLU (the FP8 recipe always does)
  bool attention = false;  // the attention layer from its input on
  bool block = false;      // the whole block from its input on
};

// The feed-forward layers whose first product in FP8 makes the codes of the activation itself (core/ops/swiglu_ffn.h).
struct SwigluInGemm {
  bool dense = false, shared_experts = false, experts = false;

  bool& of(const ProductLayer& layer) {
    return layer.format == kDense.format ? dense : layer.format == kSharedExperts.format ? shared_experts : experts;
  }
};

struct ModelContext {
  Numerics numerics;
  RecomputeParts recompute;
  Device device = {};         // of weights and activations
  float swiglu_limit = 0.0f;  // ModelConfig::swiglu_limit
  ProductFormats products = {};
  SwigluInGemm swiglu_in_gemm = {};

  SwigluOptions swiglu(const ProductLayer& layer) const {
    return {.limit = swiglu_limit, .recompute = recompute.swiglu, .in_gemm = SwigluInGemm(swiglu_in_gemm).of(layer)};
  }
  Recipe recipe_of(const ProductLayer& layer) const { return octet::recipe_of(numerics.recipe, products, layer); }

  // Of the pass that runs.
  int64_t batch = 1;               // sequences side by side in a [T, D] activation
  bool training = false;           // router loads are counted
  float micro_batch_share = 1.0f;  // of this pass in its optimizer step, for the losses that balance experts
  int64_t balance_parts = 1;       // runs of tokens that are balanced by themselves, as if each were a micro-batch
  // Called in the backward pass when nothing more is added to the gradients of a unit (Transformer::units) in it.
  std::function<void(size_t unit)> on_unit_done = {};
};

}  // namespace octet
