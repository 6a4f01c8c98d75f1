#include "tools/train/model_stats.h"

#include <catch2/catch.hpp>

namespace octet::test {
namespace {

// The shape of DeepSeek-V3 (arXiv:2412.19437, section 4.2) but for its attention, which is of another kind.
ModelConfig v3_shape() {
  ModelConfig model;
  model.layers = 61, model.hidden = 7168, model.heads = 128, model.head_dim = 128;
  model.ffn_hidden = 18432, model.dense_layers = 3, model.vocab_size = 129280;
  model.moe.num_experts = 256, model.moe.top_k = 8, model.moe.shared_experts = 1, model.moe.expert_hidden = 2048;
  return model;
}
// Its latent attention: query 7168 -> 1536 -> 128 * 192, key and value 7168 -> 576, 512 -> 128 * 256, output, two
// norms.
constexpr int64_t kV3Attention = 7168 * 1536 + 1536 * 24576 + 7168 * 576 + 512 * 32768 + 16384 * 7168 + 1536 + 512;

// The shape "small" of the benchmark: 8192 tokens, width 384, 6 layers, 16 experts.
Config small_config() {
  Config config;
  ModelConfig& model = config.model;
  model.layers = 6, model.hidden = 384, model.heads = 6, model.vocab_size = 8192;
  model.moe.num_experts = 16, model.moe.top_k = 2, model.moe.shared_experts = 1, model.moe.expert_hidden = 512;
  config.data.seq_len = 256;
  return config;
}

}  // namespace

TEST_CASE("the counts of DeepSeek-V3 are the published ones but for its attention", "[config][stats]") {
  const ParameterCounts counts = count_parameters(v3_shape(), 0);
  CHECK(counts.routed_experts == int64_t(58) * 256 * 44'040'192);
  CHECK(counts.shared_experts == int64_t(58) * 44'040'192);
  CHECK(counts.routing_bias == 14'848);
  CHECK(counts.total() - counts.attention + 61 * kV3Attention == 671'026'404'352);
  const double active = double(counts.active() - counts.attention + 61 * kV3Attention);
  CHECK(active == Approx(37.55e9).epsilon(1e-3));
  CHECK(active - double(counts.embedding) == Approx(36.63e9).epsilon(1e-3));
}

TEST_CASE("parameters of small models, counted by hand", "[config][stats]") {
  SECTION("dense, grouped queries, tied head") {
    ModelConfig model;
    model.layers = 2, model.hidden = 8, model.heads = 4, model.kv_heads = 2, model.ffn_hidden = 16;
    model.tied_head = true;
    const ParameterCounts counts = count_parameters(model, 100);
    CHECK(counts.embedding == 800);
    CHECK(counts.head == 0);
    CHECK(counts.attention == 2 * (64 + 2 * 32 + 64));
    CHECK(counts.dense_ffn == 2 * 3 * 8 * 16);
    CHECK(counts.norms == 5 * 8);
    CHECK(counts.total() == 800 + 384 + 768 + 40);
    CHECK(counts.active() == counts.total());
    CHECK(counts.active_matmul() == 800 + 384 + 768);  // the tied head is a product, the look-up none
    CHECK(training_flops_per_token(model, 100, 32) == 6 * 1952 + 6 * 2 * 8 * 32);
  }
  SECTION("experts, own head width, own vocabulary") {
    ModelConfig model;
    model.layers = 3, model.hidden = 10, model.heads = 2, model.head_dim = 6, model.ffn_hidden = 20;
    model.dense_layers = 1, model.vocab_size = 50;
    model.moe.num_experts = 4, model.moe.top_k = 2, model.moe.shared_experts = 2, model.moe.expert_hidden = 7;
    const ParameterCounts counts = count_parameters(model, 999);
    CHECK(counts.embedding == 500);
    CHECK(counts.head == 500);
    CHECK(counts.attention == 3 * 4 * 10 * 12);
    CHECK(counts.dense_ffn == 600);
    CHECK(counts.routed_experts == 2 * 4 * 210);
    CHECK(counts.active_routed_experts == 2 * 2 * 210);
    CHECK(counts.shared_experts == 2 * 2 * 210);
    CHECK(counts.gates == 2 * 4 * 10);
    CHECK(counts.norms == 70);
    CHECK(counts.routing_bias == 8);
    CHECK(counts.total() == 500 + 500 + 1440 + 600 + 1680 + 840 + 80 + 70);
    CHECK(counts.active() == counts.total() - 840);
    CHECK(counts.active_without_embeddings() == counts.active() - 1000);
    CHECK(counts.active_matmul() == counts.active() - 500 - 70);
  }
}

TEST_CASE("the benchmark's shape has its parameters and operations", "[config][stats]") {
  // bench: active = L (4 d^2 + 3 d ff (top_k + shared) + d E) + d V;  flops = 6 active + 6 L T d
  const Config config = small_config();
  const int64_t active = 6 * (4 * 384 * 384 + 3 * 384 * 512 * 3 + 384 * 16) + 384 * 8192;
  CHECK(count_parameters(config.model, 0).active_matmul() == active);
  CHECK(training_flops_per_token(config.model, 0, 256) == 6.0 * double(active) + 6.0 * 6 * 256 * 384);
}

TEST_CASE("memory follows formats, micro-batches and recomputation", "[config][stats]") {
  Config config = small_config();
  const double parameters = double(count_parameters(config.model, 0).total());
  const auto is_near = [](int64_t bytes, double want) {
    // Blocks are rounded up, by a quarter at most.
    return double(bytes) >= want && double(bytes) <= 1.25 * want;
  };
  config.precision.recipe = Recipe::kFp8Block;
  const MemoryEstimate fp8 = estimate_memory(config, 0);
  CHECK(is_near(fp8.masters, 4 * parameters));
  CHECK(is_near(fp8.gradients, 4 * parameters));
  CHECK(is_near(fp8.moments, 4 * parameters));
  CHECK(is_near(fp8.weights, parameters));

  config.precision.recipe = Recipe::kFp32;
  config.precision.moments = MomentType::kFp32;
  const MemoryEstimate fp32 = estimate_memory(config, 0);
  CHECK(fp32.weights < 1 << 18);  // the rotary table and the routers' biases
  CHECK(is_near(fp32.moments, 8 * parameters));
  CHECK(fp32.activations > fp8.activations);

  config.train.batch_size = 8, config.train.micro_batch = 4;
  CHECK(double(estimate_memory(config, 0).activations) == Approx(0.5 * double(fp32.activations)).epsilon(0.1));

  config.train.micro_batch = 0;
  int64_t before = fp32.activations;
  for (const Recompute part : {Recompute::kNorm, Recompute::kSwiglu, Recompute::kAttention, Recompute::kBlock}) {
    config.train.recompute.push_back(part);
    const int64_t now = estimate_memory(config, 0).activations;
    CAPTURE(name_of(part));
    CHECK(now < before);
    before = now;
  }
  // Only each block's input is left: 6 of them and the last norm's, 2048 tokens of 384 float32.
  CHECK(is_near(before, 7.0 * 2048 * 384 * 4));
}

TEST_CASE("a checkpoint has weights, masters and moments under each name", "[config][stats]") {
  Config config = small_config();
  const int64_t norms = 13 * 384, matrices = count_parameters(config.model, 0).total() - norms;
  const int64_t router_bytes = 6 * 2 * 16 * 4;
  // Embedding, head; per layer 4 projections, a gate, 16 experts and the shared one of 3 matrices each.
  const int64_t names = 2 + 6 * (4 + 1 + 17 * 3);
  CHECK(checkpoint_size(config, 0).bytes == matrices * (2 + 4 + 2 * 2) + norms * (4 + 2 * 2) + router_bytes);
  CHECK(checkpoint_size(config, 0).tensors == names * 4 + 13 * 3 + 12);
  config.precision.moments = MomentType::kFp32;
  CHECK(checkpoint_size(config, 0).bytes == matrices * (2 + 4 + 2 * 4) + norms * (4 + 2 * 4) + router_bytes);
  config.precision.recipe = Recipe::kFp32;
  CHECK(checkpoint_size(config, 0).bytes == (matrices + norms) * (4 + 2 * 4) + router_bytes);
  CHECK(checkpoint_size(config, 0).tensors == names * 3 + 13 * 3 + 12);
}

}  // namespace octet::test
