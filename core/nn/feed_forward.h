// One gated feed-forward layer: down_proj(silu(gate_proj x) * up_proj x). Dense layers and shared experts.
#pragma once

#include "core/nn/context.h"
#include "core/ops/swiglu_ffn.h"

namespace octet {

class FeedForward {
 public:
  // prefix: "model.layers.0.mlp."; hidden: D; inner: F; layer: kDense or kSharedExperts.
  FeedForward(const std::string& prefix, int64_t hidden, int64_t inner, const ProductLayer& layer,
              const ModelContext& context);

  Tensor forward(const LinearInput& input);  // [T, D] to [T, D]

  void visit_parameters(auto&& visit) { visit(w13_), visit(w2_); }

 private:
  const ModelContext& context_;
  ProductLayer layer_;
  Parameter w13_;  // [2F, D]: gate, then up
  Parameter w2_;   // [D, F]
};

}  // namespace octet
