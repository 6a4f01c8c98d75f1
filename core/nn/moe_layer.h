// A mixture-of-experts feed-forward layer: y[t] = shared(x[t]) + sum_k w[t,k] expert_{i[t,k]}(x[t]) (arXiv:2401.06066).
// An expert multiplies by w inside, before its last product (core/ops/swiglu_ffn.h).
// Dropless: each expert takes as many tokens as choose it, none being a normal case.
#pragma once

#include <memory>
#include <optional>

#include "core/nn/dispatcher.h"
#include "core/nn/feed_forward.h"
#include "core/nn/router.h"

namespace octet {

class MoeLayer {
 public:
  // prefix: "model.layers.3.mlp."; on disk each expert has names of its own: experts.17.gate_proj.weight.
  MoeLayer(const std::string& prefix, const ModelConfig& config, const ModelContext& context, Dispatcher& dispatcher);

  Tensor forward(const LinearInput& input, const Tensor& replayed = {});  // [T, D] to [T, D]

  // The same in steps, so that those of two micro-batches can alternate: the tokens of one move while the other
  // computes.
  struct Flow {
    LinearInput input;
    Tensor replayed = {}, base = {};
    std::unique_ptr<Dispatch> dispatch = {};
  };
  void begin(Flow& flow);     // routes
  void send(Flow& flow);      // lets the tokens go
  void share(Flow& flow);     // the shared experts; before or after send()
  void compute(Flow& flow);   // the routed experts, and sends their rows back
  Tensor finish(Flow& flow);  // [T, D]

  Router& router() { return router_; }
  bool has_shared_experts() const { return shared_.has_value(); }

  void visit_parameters(auto&& visit) {
    router_.visit_parameters(visit);
    visit(w13_), visit(w2_);
    if (shared_) shared_->visit_parameters(visit);
  }

 private:
  const ModelContext& context_;
  Dispatcher& dispatcher_;
  int64_t num_experts_;
  ExpertRange at_hand_;
  Router router_;
  Parameter w13_;  // [experts at hand, 2F, D]: gate, then up
  Parameter w2_;   // [experts at hand, D, F]
  std::optional<FeedForward> shared_;
};

}  // namespace octet
