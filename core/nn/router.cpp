#include "core/nn/router.h"

#include "core/nn/attention_layer.h"
#include "kernels/router_load.h"

namespace octet {

Router::Router(const std::string& prefix, const ModelConfig& config, const ModelContext& context)
    : prefix_(prefix),
      config_(config.moe),
      context_(context),
      gate_(prefix + "weight", {config.moe.num_experts, config.hidden}, high_precision_form(context.numerics.recipe),
            /*decays=*/true, context.device),
      bias_(zeros({config.moe.num_experts}, DType::kFloat32, MemoryCategory::kWeights, context.device)),
      last_share_(empty({config.moe.num_experts}, DType::kFloat32, MemoryCategory::kWeights, context.device)),
      load_(zeros({config.moe.num_experts}, DType::kInt64, MemoryCategory::kWorkspace, context.device)),
      losses_(zeros({2}, DType::kFloat32, MemoryCategory::kWorkspace, context.device)) {
  const int64_t E = config_.num_experts;
  copy(from_vector(std::vector<float>(size_t(E), 1.0f / float(E)), {E}), last_share_);
}

Routing Router::forward(const LinearInput& input, const Tensor& replayed) {
  const int64_t T = input.x().rows();
  const Tensor logits = linear(input, gate_, DType::kFloat32);  // [T, E]
  BalanceOptions balance;
  balance.z_beta = config_.z_loss_beta;
  balance.micro_batch_share = context_.micro_batch_share;
  // The losses come with the pass that is recorded, the choices with the first: a block that is recomputed has both.
  balance.losses = losses_;
  if (config_.aux_loss != AuxLoss::kNone) {
    balance.alpha = config_.aux_loss_alpha;
    balance.tokens_per_group = T / (config_.aux_loss == AuxLoss::kSequence ? context_.batch : context_.balance_parts);
    if (config_.aux_loss == AuxLoss::kGlobalBatch) balance.load = last_share_;
  }
  Routing routing = route(logits, bias_, replayed, config_.top_k,
                          {.score = config_.score,
                           .num_groups = config_.num_groups,
                           .kept_groups = config_.kept_groups,
                           .normalize = config_.normalize_weights,
                           .scaling = config_.routed_scaling},
                          balance);
  if (context_.training && !is_recomputing()) {
    kernels::count_choices({.indices = routing.indices, .counts = load_}, load_.stream());
  }
  return routing;
}

std::vector<int64_t> Router::Reading::load() const {
  const auto counts = load_.wait<int64_t>();
  return {counts.begin(), counts.end()};
}

Router::Losses Router::Reading::losses() const {
  const auto both = losses_.wait<float>();
  return {.balance = both[0], .z = both[1]};
}

Router::Reading Router::read() const {
  Reading reading;
  reading.load_ = Readback(load_);
  reading.losses_ = Readback(losses_);
  return reading;
}

std::vector<int64_t> Router::load() const { return read().load(); }
Router::Losses Router::losses() const { return read().losses(); }

void Router::set_load(const std::vector<int64_t>& load) { copy(from_vector(load, load_.shape()), load_); }

void Router::end_step(const kernels::UpdateFactors* factors) {
  kernels::update_router_bias({.counts = load_,
                               .share = last_share_,
                               .bias = bias_,
                               .rate = config_.bias_update_rate,
                               .centered = config_.bias_centered,
                               .factors = factors},
                              load_.stream());
}

void Router::begin_step() {
  fill_zero(load_);
  fill_zero(losses_);
}

}  // namespace octet
