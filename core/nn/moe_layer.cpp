#include "core/nn/moe_layer.h"

#include "core/nn/attention_layer.h"

namespace octet {
namespace {

std::vector<WeightPiece> gate_up_pieces(const std::string& prefix, int64_t experts, int64_t inner) {
  std::vector<WeightPiece> pieces;
  for (int64_t e = 0; e < experts; ++e) {
    const std::string expert = fmt::format("{}experts.{}.", prefix, e);
    pieces.push_back({expert + "gate_proj.weight", 2 * e * inner, inner});
    pieces.push_back({expert + "up_proj.weight", (2 * e + 1) * inner, inner});
  }
  return pieces;
}

std::vector<WeightPiece> down_pieces(const std::string& prefix, int64_t experts, int64_t hidden) {
  std::vector<WeightPiece> pieces;
  for (int64_t e = 0; e < experts; ++e) {
    pieces.push_back({fmt::format("{}experts.{}.down_proj.weight", prefix, e), e * hidden, hidden});
  }
  return pieces;
}

}  // namespace

MoeLayer::MoeLayer(const std::string& prefix, const ModelConfig& config, const ModelContext& context,
                   Dispatcher& dispatcher)
    : context_(context),
      dispatcher_(dispatcher),
      router_(prefix + "gate.", config, context),
      w13_(prefix + "experts.gate_up_proj.weight",
           {config.moe.num_experts, 2 * config.moe.expert_hidden, config.hidden}, linear_form(context.numerics.recipe),
           /*decays=*/true, gate_up_pieces(prefix, config.moe.num_experts, config.moe.expert_hidden)),
      w2_(prefix + "experts.down_proj.weight", {config.moe.num_experts, config.hidden, config.moe.expert_hidden},
          linear_form(context.numerics.recipe), /*decays=*/true,
          down_pieces(prefix, config.moe.num_experts, config.hidden)) {
  if (config.moe.shared_experts > 0) {
    shared_.emplace(prefix + "shared_experts.", config.hidden, config.moe.shared_experts * config.moe.expert_hidden,
                    context);
  }
}

Tensor MoeLayer::forward(const LinearInput& input, const Tensor& replayed) {
  const Routing routing = router_.forward(input, replayed);
  const Dispatched dispatched = dispatcher_.dispatch(input, routing.indices, w13_.shape()[0]);
  const Tensor base = shared_ ? shared_->forward(input) : Tensor();                                           // [T, D]
  const Tensor rows = swiglu_ffn(dispatched.input, dispatched.groups, w13_, w2_, context_.recompute.swiglu);  // [R, D]
  return dispatcher_.combine(rows, dispatched, routing.weights, base);
}

}  // namespace octet
