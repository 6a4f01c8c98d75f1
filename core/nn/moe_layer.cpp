#include "core/nn/moe_layer.h"

#include "core/nn/attention_layer.h"

namespace octet {
namespace {

std::vector<WeightPiece> gate_up_pieces(const std::string& prefix, ExpertRange experts, int64_t inner) {
  std::vector<WeightPiece> pieces;
  for (int64_t e = 0; e < experts.count; ++e) {
    const std::string expert = fmt::format("{}experts.{}.", prefix, experts.first + e);
    pieces.push_back({expert + "gate_proj.weight", 2 * e * inner, inner});
    pieces.push_back({expert + "up_proj.weight", (2 * e + 1) * inner, inner});
  }
  return pieces;
}

std::vector<WeightPiece> down_pieces(const std::string& prefix, ExpertRange experts, int64_t hidden) {
  std::vector<WeightPiece> pieces;
  for (int64_t e = 0; e < experts.count; ++e) {
    pieces.push_back({fmt::format("{}experts.{}.down_proj.weight", prefix, experts.first + e), e * hidden, hidden});
  }
  return pieces;
}

}  // namespace

MoeLayer::MoeLayer(const std::string& prefix, const ModelConfig& config, const ModelContext& context,
                   Dispatcher& dispatcher)
    : context_(context),
      dispatcher_(dispatcher),
      num_experts_(config.moe.num_experts),
      at_hand_(dispatcher.experts_at_hand(num_experts_)),
      router_(prefix + "gate.", config, context),
      w13_(prefix + "experts.gate_up_proj.weight", {at_hand_.count, 2 * config.moe.expert_hidden, config.hidden},
           linear_form(context.recipe_of(kExperts)), /*decays=*/true, context.device,
           gate_up_pieces(prefix, at_hand_, config.moe.expert_hidden), {at_hand_.first, num_experts_}),
      w2_(prefix + "experts.down_proj.weight", {at_hand_.count, config.hidden, config.moe.expert_hidden},
          linear_form(context.recipe_of(kExperts)), /*decays=*/true, context.device,
          down_pieces(prefix, at_hand_, config.hidden), {at_hand_.first, num_experts_}) {
  if (config.moe.shared_experts > 0) {
    shared_.emplace(prefix + "shared_experts.", config.hidden, config.moe.shared_experts * config.moe.expert_hidden,
                    kSharedExperts, context);
  }
}

void MoeLayer::begin(Flow& flow) {
  const Routing routing = router_.forward(flow.input, flow.replayed);
  const Recipe recipe = context_.recipe_of(kExperts);
  flow.dispatch = dispatcher_.start(flow.input.as(recipe), routing.indices, routing.weights, num_experts_);
}

void MoeLayer::send(Flow& flow) { flow.dispatch->send(); }

void MoeLayer::share(Flow& flow) {
  if (shared_) flow.base = shared_->forward(flow.input);  // [T, D]
}

void MoeLayer::compute(Flow& flow) {
  const Dispatched arrived = flow.dispatch->arrive();
  // [R, D]
  flow.dispatch->send_back(
      swiglu_ffn(arrived.input, arrived.groups, arrived.weights, w13_, w2_, context_.swiglu(kExperts)));
}

Tensor MoeLayer::finish(Flow& flow) { return flow.dispatch->combine(flow.base); }

Tensor MoeLayer::forward(const LinearInput& input, const Tensor& replayed) {
  Flow flow{.input = input, .replayed = replayed};
  begin(flow);
  send(flow);
  share(flow);
  compute(flow);
  return finish(flow);
}

}  // namespace octet
