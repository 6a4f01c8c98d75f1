// The shape of a decoder-only transformer and of its mixture-of-experts layers.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/base/enum_names.h"
#include "core/base/problems.h"
#include "kernels/rope.h"
#include "kernels/router.h"

namespace octet {

// What keeps the experts evenly loaded besides the routing bias: kernels/router.h, BalanceLoss.
enum class AuxLoss {
  kNone,
  kSequence,     // over each sequence by itself (arXiv:2412.19437, equations 17 to 20)
  kMicroBatch,   // over the tokens of one micro-batch
  kGlobalBatch,  // with the load of the whole global batch
};

template <>
struct EnumNames<AuxLoss> {
  static constexpr std::pair<AuxLoss, std::string_view> values[] = {{AuxLoss::kNone, "none"},
                                                                    {AuxLoss::kSequence, "sequence"},
                                                                    {AuxLoss::kMicroBatch, "micro_batch"},
                                                                    {AuxLoss::kGlobalBatch, "global_batch"}};
};
template <>
struct EnumNames<kernels::ScoreFunction> {
  static constexpr std::pair<kernels::ScoreFunction, std::string_view> values[] = {
      {kernels::ScoreFunction::kSoftmax, "softmax"}, {kernels::ScoreFunction::kSigmoid, "sigmoid"}};
};
template <>
struct EnumNames<kernels::RopeLayout> {
  static constexpr std::pair<kernels::RopeLayout, std::string_view> values[] = {
      {kernels::RopeLayout::kHalf, "half"}, {kernels::RopeLayout::kInterleaved, "interleaved"}};
};

// Defaults are the router of DeepSeek-V3 (arXiv:2412.19437) without its groups; num_experts 0 leaves the layer dense.
struct MoeConfig {
  int64_t num_experts = 0;
  int64_t top_k = 2;
  int64_t shared_experts = 0;
  int64_t expert_hidden = 256;
  kernels::ScoreFunction score = kernels::ScoreFunction::kSigmoid;
  int64_t num_groups = 1;
  int64_t kept_groups = 1;
  bool normalize_weights = true;
  float routed_scaling = 1.0f;
  float bias_update_rate = 1e-3f;  // the best of {1e-4, 1e-3, 1e-2} in arXiv:2408.15664
  bool bias_centered = false;
  AuxLoss aux_loss = AuxLoss::kNone;
  float aux_loss_alpha = 1e-4f;  // that of DeepSeek-V3; 0.01 is usual where this loss works alone
  float z_loss_beta = 0.0f;

  void fields(auto&& visit) {
    visit("num_experts", num_experts, "routed experts in one layer; 0 makes every layer dense");
    visit("top_k", top_k, "routed experts each token visits");
    visit("shared_experts", shared_experts,
          "experts every token visits, fused into one of shared_experts times the "
          "width");
    visit("expert_hidden", expert_hidden, "hidden width of one SwiGLU expert, elements");
    visit("score", score, "how router logits become scores");
    visit("num_groups", num_groups, "groups the experts are divided into for group-limited routing; 1 turns it off");
    visit("kept_groups", kept_groups, "groups a token may choose from");
    visit("normalize_weights", normalize_weights, "divide a token's top_k weights by their sum");
    visit("routed_scaling", routed_scaling, "factor on the routed experts' weights");
    visit("bias_update_rate", bias_update_rate,
          "step of the routing bias per optimizer step (arXiv:2408.15664); 0 turns it off");
    visit("bias_centered", bias_centered, "subtract the mean of the bias step, so that the biases keep their sum");
    visit("aux_loss", aux_loss, "tokens over which the load-balance loss is taken; none turns it off");
    visit("aux_loss_alpha", aux_loss_alpha, "weight of the load-balance loss");
    visit("z_loss_beta", z_loss_beta, "weight of the router z-loss (arXiv:2202.08906); 0 turns it off");
  }

  void validate(Problems& problems) const {
    problems.require(num_experts >= 0 && num_experts <= 65536, "num_experts", "is {}; wanted 0 (dense) to 65536",
                     num_experts);
    if (num_experts <= 0) return;  // the other keys mean nothing in a dense model
    problems.require(1 <= top_k && top_k <= num_experts, "top_k", "is {}; wanted 1 to model.moe.num_experts, {}", top_k,
                     num_experts);
    problems.require(shared_experts >= 0 && shared_experts <= 1024, "shared_experts", "is {}; wanted 0 to 1024",
                     shared_experts);
    problems.require(expert_hidden >= 1 && expert_hidden <= 1 << 20, "expert_hidden", "is {}; wanted 1 to 1048576",
                     expert_hidden);
    const bool groups_ok =
        problems.require(num_groups >= 1 && num_experts % num_groups == 0, "num_groups",
                         "is {}; wanted a divisor of model.moe.num_experts, {}", num_groups, num_experts);
    const bool kept_ok = problems.require(1 <= kept_groups && kept_groups <= num_groups, "kept_groups",
                                          "is {}; wanted 1 to model.moe.num_groups, {}", kept_groups, num_groups);
    if (groups_ok && kept_ok && top_k <= num_experts) {
      const int64_t reachable = num_experts / num_groups * kept_groups;
      problems.require(top_k <= reachable, "kept_groups",
                       "is {}, which leaves {} experts to choose from; wanted at least model.moe.top_k, {}",
                       kept_groups, reachable, top_k);
    }
    problems.require(routed_scaling > 0.0f, "routed_scaling", "is {}; wanted more than 0", routed_scaling);
    problems.require(bias_update_rate >= 0.0f && bias_update_rate <= 1.0f, "bias_update_rate", "is {}; wanted 0 to 1",
                     bias_update_rate);
    problems.require(aux_loss_alpha >= 0.0f, "aux_loss_alpha", "is {}; wanted 0 or more", aux_loss_alpha);
    problems.require(z_loss_beta >= 0.0f, "z_loss_beta", "is {}; wanted 0 or more", z_loss_beta);
  }
};

struct ModelConfig {
  int64_t layers = 4;
  int64_t hidden = 256;
  int64_t heads = 4;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t ffn_hidden = 1024;
  int64_t dense_layers = 0;
  int64_t vocab_size = 0;
  float rope_theta = 10000.0f;
  kernels::RopeLayout rope_layout = kernels::RopeLayout::kHalf;
  float norm_eps = 1e-6f;
  float swiglu_limit = 0.0f;
  bool tied_head = false;
  float init_std = 0.02f;
  MoeConfig moe;

  void fields(auto&& visit) {
    visit("layers", layers, "transformer blocks");
    visit("hidden", hidden, "width of the residual stream, elements");
    visit("heads", heads, "query heads in one attention layer");
    visit("kv_heads", kv_heads, "key and value heads, a divisor of heads; 0 means heads (no grouping)");
    visit("head_dim", head_dim, "width of one head, elements, even; 0 means hidden / heads");
    visit("ffn_hidden", ffn_hidden, "hidden width of a dense SwiGLU layer, elements");
    visit("dense_layers", dense_layers, "first blocks whose feed-forward layer is dense; the others have experts");
    visit("vocab_size", vocab_size, "rows of the embedding and of the head, tokens; 0 means the tokenizer's own size");
    visit("rope_theta", rope_theta, "base of the rotary position angles");
    visit("rope_layout", rope_layout,
          "which elements of a head form a rotary pair: i and i + head_dim/2, or 2i and "
          "2i + 1");
    visit("norm_eps", norm_eps, "added to the mean square in RMSNorm");
    visit("swiglu_limit", swiglu_limit,
          "largest gate, and largest up of either sign, that SwiGLU lets through; 0 turns it off");
    visit("tied_head", tied_head, "the head shares the embedding's weight");
    visit("init_std", init_std, "standard deviation of the initial weights; norm weights start at 1");
    visit("moe", moe, "the mixture-of-experts layers");
  }

  bool has_experts() const { return moe.num_experts > 0; }
  bool is_moe_layer(int64_t layer) const { return has_experts() && layer >= dense_layers; }
  int64_t num_moe_layers() const { return has_experts() && dense_layers < layers ? layers - dense_layers : 0; }
  int64_t num_kv_heads() const { return kv_heads == 0 ? heads : kv_heads; }
  int64_t head_width() const { return head_dim == 0 ? hidden / heads : head_dim; }

  void validate(Problems& problems) const {
    problems.require(layers >= 1 && layers <= 1024, "layers", "is {}; wanted 1 to 1024", layers);
    problems.require(hidden >= 1 && hidden <= 1 << 20, "hidden", "is {}; wanted 1 to 1048576", hidden);
    const bool heads_ok = problems.require(heads >= 1 && heads <= 65536, "heads", "is {}; wanted 1 to 65536", heads);
    problems.require(kv_heads >= 0, "kv_heads", "is {}; wanted 0 (as many as heads) or more", kv_heads);
    if (heads_ok && kv_heads > 0) {
      problems.require(heads % kv_heads == 0, "kv_heads", "is {}; wanted a divisor of model.heads, {}", kv_heads,
                       heads);
    }
    if (heads_ok && head_dim == 0) {
      problems.require(hidden % (2 * heads) == 0, "heads",
                       "is {} over model.hidden {}, which leaves no whole, even head width; wanted hidden to be a "
                       "multiple of 2 * heads, or model.head_dim to be given",
                       heads, hidden);
    } else {
      problems.require(head_dim >= 2 && head_dim % 2 == 0 && head_dim <= 4096, "head_dim",
                       "is {}; wanted an even number from 2 to 4096, or 0 for hidden / heads", head_dim);
    }
    problems.require(ffn_hidden >= 1 && ffn_hidden <= 1 << 24, "ffn_hidden", "is {}; wanted 1 to 16777216", ffn_hidden);
    problems.require(0 <= dense_layers && dense_layers <= layers, "dense_layers", "is {}; wanted 0 to model.layers, {}",
                     dense_layers, layers);
    problems.require(vocab_size >= 0 && vocab_size <= 1 << 24, "vocab_size",
                     "is {}; wanted 0 (the tokenizer's own) to 16777216", vocab_size);
    problems.require(rope_theta > 1.0f, "rope_theta", "is {}; wanted more than 1", rope_theta);
    problems.require(norm_eps > 0.0f && norm_eps < 1.0f, "norm_eps", "is {}; wanted more than 0 and less than 1",
                     norm_eps);
    problems.require(swiglu_limit >= 0.0f && std::isfinite(swiglu_limit), "swiglu_limit",
                     "is {}; wanted 0 (no limit) or more, finite", swiglu_limit);
    problems.require(init_std > 0.0f && init_std <= 1.0f, "init_std", "is {}; wanted more than 0, at most 1", init_std);
    problems.section("moe", [&] { moe.validate(problems); });
  }
};

}  // namespace octet
