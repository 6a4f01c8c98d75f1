// The memory that octet check predicts, against what training takes.
#include <catch2/catch.hpp>
#include <tuple>

#include "core/base/random.h"
#include "core/tensor/allocator.h"
#include "tools/train/model_stats.h"
#include "tools/train/training_step.h"

namespace octet::test {
namespace {

// The peak of two optimizer steps of two micro-batches each.
int64_t measured_peak(const Config& config) {
  release_kept_memory();
  const TrainConfig& train = config.train;
  Transformer model(config.model, config.precision, recompute_parts(train), config.data.seq_len);
  AdamW optimizer(model.parameters(), config.optim, moments_dtype(config.precision));
  model.init_weights(1);
  reset_peak_memory();  // what initialisation needs for a while is no part of training
  const int64_t sequences = config.sequences_per_micro_batch(), T = sequences * config.data.seq_len;
  const RandomStream random(1, "tokens");
  for (int64_t step = 1; step <= 2; ++step) {
    for (int64_t micro_batch = 0; micro_batch < 2; ++micro_batch) {
      std::vector<int32_t> ids(static_cast<size_t>(T));
      for (size_t i = 0; i < ids.size(); ++i) {
        ids[i] = int32_t(random.below(uint64_t(config.model.vocab_size), i, uint64_t(2 * step + micro_batch)));
      }
      model.train_micro_batch(from_vector(ids, {T}), from_vector(ids, {T}), sequences, 1.0f / float(T), 0.5f);
    }
    optimizer.step(step, 1e-3);
  }
  return memory_use().peak_total_bytes;
}

}  // namespace

TEST_CASE("memory is predicted within 5 % of what training takes", "[config][memory]") {
  constexpr auto kBf16 = ProductFormat::kBf16;
  constexpr auto kLayerBf16 = LayerFormat::kBf16;
  static constexpr auto kColumns = WgradOperands::kColumns;
  const auto [recipe, products, wgrad] = GENERATE(
      std::tuple(Recipe::kFp32, ProductFormats{}, kColumns), std::tuple(Recipe::kBf16, ProductFormats{}, kColumns),
      std::tuple(Recipe::kFp8Block, ProductFormats{}, kColumns),
      std::tuple(Recipe::kFp8Block, ProductFormats{}, WgradOperands::kTiles),
      std::tuple(Recipe::kFp8Block, ProductFormats{.attention = kBf16}, kColumns),
      std::tuple(Recipe::kFp8Block, ProductFormats{.dense = kBf16}, kColumns),
      std::tuple(Recipe::kFp8Block, ProductFormats{.experts = kBf16}, kColumns),
      std::tuple(Recipe::kFp8Block, ProductFormats{.layers = {.qkv_proj = kLayerBf16, .shared_experts = kLayerBf16}},
                 kColumns),
      std::tuple(Recipe::kFp8Block, ProductFormats{.layers = {.o_proj = kLayerBf16, .dense = kLayerBf16}}, kColumns));
  const auto recompute = GENERATE(std::vector<Recompute>{}, std::vector{Recompute::kNorm, Recompute::kSwiglu},
                                  std::vector{Recompute::kAttention}, std::vector{Recompute::kBlock});
  const bool has_experts = GENERATE(true, false);
  Config config;
  config.precision.recipe = recipe;
  config.precision.products = products;
  config.precision.wgrad = wgrad;
  config.train.recompute = recompute;
  config.train.sample_tokens = 1;
  config.train.batch_size = 4, config.data.seq_len = 64;
  ModelConfig& model = config.model;
  model.layers = 3, model.hidden = 96, model.heads = 4, model.kv_heads = 2, model.ffn_hidden = 200;
  model.vocab_size = 500, model.dense_layers = 1;
  if (has_experts) {
    model.moe.num_experts = 6, model.moe.top_k = 2, model.moe.shared_experts = 1, model.moe.expert_hidden = 64;
    model.moe.aux_loss = AuxLoss::kSequence;
  }
  const MemoryEstimate estimate = estimate_memory(config, 0);
  const int64_t measured = measured_peak(config);
  CAPTURE(name_of(recipe), name_of(wgrad), recompute.size(), has_experts, estimate.activations, estimate.workspace);
  // Nothing is saved here.
  const int64_t predicted = estimate.masters + estimate.weights + estimate.gradients + estimate.moments +
                            estimate.activations + estimate.workspace;
  CHECK(double(predicted) == Approx(double(measured)).epsilon(0.05));
}

TEST_CASE("a model of experts takes less memory in FP8 than in bfloat16", "[config][memory]") {
  Config config;
  config.train.sample_tokens = 1;
  config.train.batch_size = 4, config.data.seq_len = 256;
  ModelConfig& model = config.model;
  model.layers = 1, model.hidden = 256, model.heads = 2, model.vocab_size = 64;
  // One layer: what the backward pass needs for a while counts as much as what is kept for it.
  model.moe.num_experts = 8, model.moe.top_k = 4, model.moe.shared_experts = 0, model.moe.expert_hidden = 128;
  const auto peak = [&](Recipe recipe) {
    config.precision.recipe = recipe;
    const MemoryEstimate estimate = estimate_memory(config, 0);
    const int64_t held = estimate.masters + estimate.weights + estimate.gradients + estimate.moments;
    return measured_peak(config) - held;
  };
  CHECK(peak(Recipe::kFp8Block) < peak(Recipe::kBf16));
}

}  // namespace octet::test
