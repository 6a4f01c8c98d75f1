// Layouts of ranks, threads of this process, against one rank: tools/train/verify.h.
#include "parallel/local_communicator.h"
#include "tests/support/numeric.h"
#include "tools/train/verify.h"

namespace octet::test {
namespace {

Config layout_config() {
  Config config;
  config.model.layers = 3;
  config.model.hidden = 136;  // ragged slabs, tiles and blocks
  config.model.heads = 2;
  config.model.dense_layers = 1;
  config.model.ffn_hidden = 150;
  config.model.vocab_size = 300;
  config.model.moe.num_experts = 8;
  config.model.moe.top_k = 2;
  config.model.moe.shared_experts = 1;
  config.model.moe.expert_hidden = 72;
  config.model.moe.bias_update_rate = 0.01f;
  config.model.moe.aux_loss = AuxLoss::kMicroBatch;
  config.model.moe.aux_loss_alpha = 0.01f;
  config.model.moe.z_loss_beta = 0.001f;
  config.data.seq_len = 12;
  config.train.batch_size = 8;
  config.optim.lr = 0.01;
  config.optim.grad_clip = 0.5;  // always at work
  return config;
}

LayoutResult verify(const Config& config, int64_t steps) {
  LayoutResult result;
  const auto errors =
      run_local_ranks(int(config.parallel.dp), {.communicator = {}, .seed = 3, .max_delay_us = 50, .faults = {}},
                      [&](Communicator& world) {
                        LayoutResult mine = verify_layout(config, steps, world);
                        if (world.rank() == 0) result = mine;
                      });
  rethrow_first(errors);
  return result;
}

void check_equal(const Config& config, int64_t steps = 3) {
  const LayoutResult result = verify(config, steps);
  INFO(result.first_difference);
  CAPTURE(result.worst_gradient, result.worst_update);
  CHECK(result.losses_equal);
  CHECK(result.norms_equal);
  CHECK(result.gradients_different == 0);
  CHECK(result.updates_different == 0);
  CHECK(result.last_loss < result.first_loss);
  CHECK(result.tensors > 40);
}

}  // namespace

TEST_CASE("every layout of ranks is one rank, bit for bit", "[train][layout]") {
  Config config = layout_config();
  config.precision.recipe = GENERATE(Recipe::kFp32, Recipe::kBf16, Recipe::kFp8Block);
  const auto [dp, ep] = GENERATE(std::pair{1, 1}, std::pair{2, 1}, std::pair{4, 1}, std::pair{8, 1}, std::pair{2, 2},
                                 std::pair{4, 2}, std::pair{4, 4}, std::pair{8, 2}, std::pair{8, 8});
  config.parallel.dp = dp, config.parallel.ep = ep;
  config.train.micro_batch = dp <= 4 ? GENERATE(1, 2) : 1;
  CAPTURE(name_of(config.precision.recipe), dp, ep, config.train.micro_batch);
  check_equal(config);
}

TEST_CASE("what a layout adds changes no bit", "[train][layout]") {
  Config config = layout_config();
  config.parallel.dp = 4, config.parallel.ep = 4;
  config.train.micro_batch = 1;
  SECTION("two stages over two nodes") {
    config.parallel.two_stage = TwoStage::kOn;
    config.parallel.ranks_per_node = 2;
  }
  SECTION("micro-batches in turn") { config.parallel.interleave = 2; }
  SECTION("blocks computed again") { config.train.recompute = {Recompute::kBlock}; }
  SECTION("parts computed again") {
    config.train.recompute = {Recompute::kNorm, Recompute::kSwiglu, Recompute::kAttention};
  }
  SECTION("values on the wire") { config.parallel.wire = Wire::kBf16; }
  SECTION("gradients in FP8 on the wire") { config.precision.expert_gradients = GradientWire::kFp8; }
  SECTION("experts in bfloat16") {
    config.precision.products.experts = ProductFormat::kBf16;
    config.precision.expert_gradients = GradientWire::kFp8;  // which those in FP8 would read
  }
  SECTION("layers of one kind in both formats") {
    config.precision.products.layers = {.o_proj = LayerFormat::kBf16, .shared_experts = LayerFormat::kBf16};
  }
  SECTION("only experts in FP8") {
    config.precision.products.attention = config.precision.products.dense = ProductFormat::kBf16;
  }
  SECTION("the tensor core's arithmetic") { config.precision.emulation = Fp8Arithmetic::kHopper; }
  SECTION("weight gradients by tiles") {
    config.precision.wgrad = WgradOperands::kTiles;
    config.precision.wgrad_underflow_limit = GENERATE(1.0, 1e-4);  // at which some weights go back to columns
    config.train.recompute = {Recompute::kBlock};
  }
  SECTION("a tied head, and the load of the global batch") {
    config.model.tied_head = true;
    config.model.moe.aux_loss = AuxLoss::kGlobalBatch;
  }
  SECTION("groups of experts") {
    config.model.moe.num_groups = 4;
    config.model.moe.kept_groups = 2;
    config.parallel.ranks_per_node = 2;
  }
  check_equal(config);
}

TEST_CASE("a layout that computes something else is caught and named", "[train][layout]") {
  Config config = layout_config();
  config.parallel.dp = 2;
  config.model.tied_head = true;
  config.parallel.interleave = 2;  // the one layout that adds up in another order: the two uses of a tied head
  config.train.micro_batch = 2;
  config.precision.recipe = Recipe::kFp32;
  const LayoutResult result = verify(config, 1);
  CHECK_FALSE(result.is_equal());
  CHECK(result.gradients_different >= 1);
  CHECK(result.worst_gradient < 1e-5);
  CHECK(result.first_difference.find("step 1, gradient of model.embed_tokens.weight: ") == 0);
}

}  // namespace octet::test
