// Multi-head or grouped-query causal self-attention with rotary positions: o_proj(attention(q, k, v)).
#pragma once

#include "core/nn/context.h"
#include "core/nn/model_config.h"
#include "core/ops/attention.h"
#include "core/ops/linear.h"

namespace octet {

class AttentionLayer {
 public:
  // prefix: "model.layers.0.self_attn."; on disk the projections are q_proj, k_proj, v_proj and o_proj.
  AttentionLayer(const std::string& prefix, const ModelConfig& config, const ModelContext& context,
                 const Rotary& rotary);

  Tensor forward(const LinearInput& input);  // [T, D] to [T, D]
  // The next N tokens of one sequence (core/ops/attention.h).
  Tensor decode(const LinearInput& input, KvCache& cache);
  KvCache make_cache(int64_t capacity) const;

  void visit_parameters(auto&& visit) { visit(qkv_), visit(o_); }

 private:
  const ModelContext& context_;
  const Rotary& rotary_;
  AttentionShape shape_;
  Parameter qkv_;  // [(H + 2 Hkv) * head_dim, D]
  Parameter o_;    // [D, H * head_dim]
};

// The form of a linear layer's weight under a recipe.
WeightForm linear_form(Recipe recipe);
// The form of what the FP8 recipe leaves in higher precision: embedding, gate, head.
WeightForm high_precision_form(Recipe recipe);

}  // namespace octet
