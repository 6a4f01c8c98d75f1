#include "core/nn/router.h"

#include "core/nn/attention_layer.h"

namespace octet {

Router::Router(const std::string& prefix, const ModelConfig& config, const ModelContext& context)
    : prefix_(prefix),
      config_(config.moe),
      context_(context),
      gate_(prefix + "weight", {config.moe.num_experts, config.hidden}, high_precision_form(context.numerics.recipe),
            /*decays=*/true),
      bias_(zeros({config.moe.num_experts}, DType::kFloat32, MemoryCategory::kWeights)),
      last_share_(empty({config.moe.num_experts}, DType::kFloat32, MemoryCategory::kWeights)),
      load_(size_t(config.moe.num_experts), 0) {
  std::fill_n(last_share_.data<float>(), config_.num_experts, 1.0f / float(config_.num_experts));
}

Routing Router::forward(const LinearInput& input, const Tensor& replayed) {
  const int64_t T = input.x().rows();
  const Tensor logits = linear(input, gate_, DType::kFloat32);  // [T, E]
  BalanceOptions balance;
  balance.z_beta = config_.z_loss_beta;
  balance.micro_batch_share = context_.micro_batch_share;
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
  // The losses come with the pass that is recorded, the choices with the first: a block that is recomputed has both.
  balance_loss_ += routing.balance_loss;
  z_loss_ += routing.z_loss;
  if (context_.training && !is_recomputing()) {
    const int32_t* indices = routing.indices.data<int32_t>();
    for (int64_t i = 0; i < routing.indices.num_elements(); ++i) ++load_[size_t(indices[i])];
  }
  return routing;
}

void Router::end_step() {
  int64_t total = 0;
  for (const int64_t count : load_) total += count;
  const auto E = int64_t(load_.size());
  if (total > 0) {
    float* share = last_share_.data<float>();
    for (int64_t e = 0; e < E; ++e) share[e] = float(double(load_[size_t(e)]) / double(total));
  }
  if (config_.bias_update_rate > 0 && total > 0) {
    std::vector<int> sign(load_.size());
    int sum = 0;
    for (size_t e = 0; e < load_.size(); ++e) {
      const int64_t above = total - load_[e] * E;  // E * (mean - load), in whole numbers
      sign[e] = above > 0 ? 1 : above < 0 ? -1 : 0;
      sum += sign[e];
    }
    const float center = config_.bias_centered ? float(sum) / float(E) : 0.0f;
    float* bias = bias_.data<float>();
    for (int64_t e = 0; e < E; ++e) bias[e] += config_.bias_update_rate * (float(sign[size_t(e)]) - center);
  }
  drop_step();
}

void Router::drop_step() {
  std::fill(load_.begin(), load_.end(), 0);
  balance_loss_ = z_loss_ = 0;
}

}  // namespace octet
