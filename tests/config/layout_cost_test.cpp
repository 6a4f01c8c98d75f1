// What a rank holds and sends, as octet check predicts it, against ranks that train: threads of this process.
#include <bit>
#include <catch2/catch.hpp>

#include "core/base/random.h"
#include "core/tensor/allocator.h"
#include "parallel/local_communicator.h"
#include "parallel/parallelize.h"
#include "tools/train/model_stats.h"
#include "tools/train/training_step.h"

namespace octet::test {
namespace {

Config layout_config() {
  Config config;
  ModelConfig& model = config.model;
  model.layers = 3, model.hidden = 136, model.heads = 4, model.kv_heads = 2, model.ffn_hidden = 200;
  model.vocab_size = 500, model.dense_layers = 1;
  model.moe.num_experts = 8, model.moe.top_k = 2, model.moe.shared_experts = 1, model.moe.expert_hidden = 72;
  config.data.seq_len = 32;
  config.train.batch_size = 16, config.train.micro_batch = 1;
  config.train.sample_tokens = 1;
  return config;
}

struct Measured {
  MemoryUse before, after;     // of all ranks together, after two steps
  std::vector<Traffic> world;  // of each rank, in the second step
  std::vector<Traffic> experts, ep, rail, node;
};

int64_t sent(const Traffic& traffic, Operation operation) { return traffic[operation].bytes; }

Measured train(const Config& config) {
  const auto dp = size_t(config.parallel.dp);
  Measured measured;
  for (auto* each : {&measured.world, &measured.experts, &measured.ep, &measured.rail, &measured.node}) {
    each->resize(dp);
  }
  release_kept_memory();
  measured.before = memory_use();
  const auto errors = run_local_ranks(int(dp), {}, [&](Communicator& world) {
    const Ranks ranks(world, config.parallel, config.model);
    Transformer model(config.model, config.precision, recompute_parts(config.train), config.data.seq_len,
                      ranks.make_dispatcher());
    const auto shards = ranks.shard(model);
    AdamW optimizer(model.parameters(), config.optim, moments_dtype(config.precision), &world);
    model.init_weights(1);
    shards->gather_weights();
    const StepPlan plan = plan_step(config, world.rank());
    const RandomStream tokens(1, "tokens");
    const StepRanks together{.world = &world, .shards = shards.get()};
    world.barrier();
    if (world.rank() == 0) reset_peak_memory();  // what initialisation needs for a while is no part of training
    world.barrier();
    for (int64_t step = 1; step <= 2; ++step) {
      world.reset_traffic();
      for (Communicator* group : ranks.groups()) group->reset_traffic();
      // Tokens are drawn evenly, so that routing is about even.
      const StepLosses losses(plan, Device{});
      optimizer.prepare(step, 1e-3);
      run_micro_batches(
          model, plan,
          [&](int64_t m) {
            const int64_t T = plan.sequences * plan.seq_len;
            Batch batch{.num_samples = plan.sequences, .inputs = std::vector<int32_t>(size_t(T)), .targets = {}};
            for (int64_t i = 0; i < T; ++i) {
              const uint64_t at = uint64_t((step * plan.micro_batches + m) * T + i);
              batch.inputs[size_t(i)] = int32_t(tokens.below(uint64_t(config.model.vocab_size), at));
            }
            batch.targets = batch.inputs;
            return tokens_on({}, batch);
          },
          losses, together);
      optimizer.measure();
      sum_step(model, optimizer, plan, losses, together);
      apply_update(model, optimizer, losses, nullptr, together);
    }
    const auto me = size_t(world.rank());
    const std::vector<Communicator*> groups = ranks.groups();
    measured.world[me] = world.traffic();
    measured.ep[me] = groups[0]->traffic();
    measured.experts[me] = groups[1]->traffic();
    if (groups.size() > 2) measured.rail[me] = groups[2]->traffic(), measured.node[me] = groups[3]->traffic();
    world.barrier();
    if (world.rank() == 0) measured.after = memory_use();
    world.barrier();
  });
  rethrow_first(errors);
  return measured;
}

int64_t held(const Measured& measured, MemoryCategory category) {
  return measured.after.current_bytes[size_t(category)] - measured.before.current_bytes[size_t(category)];
}

// All that a rank sends, by what it is for; dispatches over all ranks, since some have more popular experts.
void check_traffic(const Config& config, const Measured& measured, double tolerance) {
  double predicted = 0, dispatched = 0;
  for (int64_t rank = 0; rank < config.parallel.dp; ++rank) {
    CAPTURE(rank);
    const auto r = size_t(rank);
    const WireBytes wire = wire_bytes(config, 0, rank);
    const auto of_both = [&](Operation operation) {
      return double(sent(measured.world[r], operation) + sent(measured.experts[r], operation));
    };
    CHECK(wire.reduce.bytes == of_both(Operation::kReduceScatter));
    CHECK(wire.gather.bytes == of_both(Operation::kAllGather));
    CHECK(wire.sums.bytes == of_both(Operation::kAllReduce));
    predicted += wire.counts.bytes + wire.tokens_out.bytes + wire.rows_back.bytes + wire.gradients_out.bytes +
                 wire.gradients_back.bytes;
    dispatched += double(measured.ep[r].bytes() + measured.rail[r].bytes() + measured.node[r].bytes());
  }
  CHECK(predicted == Approx(dispatched).epsilon(tolerance).margin(1e-6));
}

}  // namespace

TEST_CASE("what a rank holds of weights, gradients and moments is predicted to the byte", "[config][layout]") {
  Config config = layout_config();
  config.precision.recipe = GENERATE(Recipe::kFp32, Recipe::kBf16, Recipe::kFp8Block);
  const auto [dp, ep] =
      GENERATE(std::pair{1, 1}, std::pair{2, 1}, std::pair{2, 2}, std::pair{4, 2}, std::pair{8, 4}, std::pair{8, 8});
  config.parallel.dp = dp, config.parallel.ep = ep;
  CAPTURE(name_of(config.precision.recipe), dp, ep);
  const Measured measured = train(config);
  MemoryEstimate all;
  for (int64_t rank = 0; rank < dp; ++rank) {
    const MemoryEstimate of_rank = estimate_memory(config, 0, rank);
    all.masters += of_rank.masters, all.weights += of_rank.weights;
    all.gradients += of_rank.gradients, all.moments += of_rank.moments;
    CHECK(of_rank.total() <= estimate_memory(config, 0, fullest_rank(config, 0)).total() * 101 / 100);
  }
  CHECK(all.masters + all.weights == held(measured, MemoryCategory::kWeights));
  CHECK(all.gradients == held(measured, MemoryCategory::kGradients));
  CHECK(all.moments == held(measured, MemoryCategory::kOptimizer));
}

TEST_CASE("the memory of ranks is predicted within 10 % of what they take together", "[config][layout][memory]") {
  Config config = layout_config();
  config.model.vocab_size = 300;
  config.model.moe.expert_hidden = 128;
  config.train.batch_size = 16, config.train.micro_batch = 4, config.data.seq_len = 64;
  config.parallel.dp = 4;
  config.parallel.ep = GENERATE(1, 2, 4);
  config.precision.recipe = GENERATE(Recipe::kBf16, Recipe::kFp8Block);
  SECTION("direct") {}
  SECTION("in two stages") {
    config.parallel.two_stage = TwoStage::kOn;
    config.parallel.ranks_per_node = 2;
  }
  SECTION("in turn") {
    config.train.micro_batch = 2;
    config.parallel.interleave = 2;
  }
  SECTION("norms computed again") { config.train.recompute = {Recompute::kNorm, Recompute::kSwiglu}; }
  CAPTURE(name_of(config.precision.recipe), config.parallel.ep);
  const Measured measured = train(config);
  int64_t predicted = 0;
  for (int64_t rank = 0; rank < 4; ++rank) {
    const MemoryEstimate memory = estimate_memory(config, 0, rank);
    CAPTURE(memory.activations, memory.workspace);
    predicted +=
        memory.total() - std::max<int64_t>(0, memory.saving - memory.activations - memory.workspace - memory.reduction);
  }
  int64_t before = 0;
  for (const int64_t bytes : measured.before.current_bytes) before += bytes;
  CHECK(double(predicted) == Approx(double(measured.after.peak_total_bytes - before)).epsilon(0.1));
}

TEST_CASE("bytes on the wire are predicted exactly where every token visits every expert", "[config][layout]") {
  Config config = layout_config();
  config.model.moe.top_k = 8;
  config.precision.recipe = GENERATE(Recipe::kFp32, Recipe::kBf16, Recipe::kFp8Block);
  const auto [dp, ep] = GENERATE(std::pair{2, 1}, std::pair{2, 2}, std::pair{4, 2}, std::pair{4, 4}, std::pair{8, 4});
  config.parallel.dp = dp, config.parallel.ep = ep;
  SECTION("direct") {}
  SECTION("in two stages") {
    config.parallel.two_stage = TwoStage::kOn;
    config.parallel.ranks_per_node = 2;
  }
  SECTION("values out, FP8 gradients, in turn") {
    config.parallel.wire = Wire::kBf16;
    config.precision.expert_gradients = GradientWire::kFp8;
    config.parallel.interleave = 2;
  }
  SECTION("blocks computed again") { config.train.recompute = {Recompute::kBlock}; }
  SECTION("experts in bfloat16") { config.precision.products.experts = ProductFormat::kBf16; }
  SECTION("experts in bfloat16, the rest by tiles") {
    config.precision.products.experts = ProductFormat::kBf16;
    config.precision.wgrad = WgradOperands::kTiles;
  }
  CAPTURE(name_of(config.precision.recipe), dp, ep);
  check_traffic(config, train(config), /*tolerance=*/1e-12);
}

TEST_CASE("bytes of a dispatch are predicted within 5 % under the routing of a new model", "[config][layout]") {
  // A new router chooses about evenly where tokens are many and even.
  Config config = layout_config();
  config.train.batch_size = 64, config.train.micro_batch = 4;
  config.model.layers = 2, config.model.vocab_size = 4096;
  config.parallel.dp = 4, config.parallel.ep = 4;
  config.model.moe.top_k = 3;
  SECTION("direct") {}
  SECTION("in two stages") {
    config.model.moe.num_groups = 4, config.model.moe.kept_groups = 2;
    config.parallel.ranks_per_node = 2;
  }
  check_traffic(config, train(config), /*tolerance=*/0.05);
}

TEST_CASE("the chance that a token visits a place, against all choices there are", "[config][layout]") {
  MoeConfig moe;
  moe.num_experts = 12;
  moe.top_k = GENERATE(1, 2, 4);
  moe.num_groups = GENERATE(1, 3, 6);
  moe.kept_groups = moe.num_groups == 1 ? 1 : 2;
  const int64_t here = GENERATE(1, 2, 4, 6, 12), of_group = 12 / moe.num_groups;
  // Experts of a place lie in whole groups, or inside one.
  if (of_group % here != 0 && here % of_group != 0) return;
  CAPTURE(moe.top_k, moe.num_groups, here);
  double all = 0, visits = 0;
  for (uint32_t groups = 0; groups < 1U << moe.num_groups; ++groups) {
    if (std::popcount(groups) != moe.kept_groups) continue;
    double of_groups = 0, visits_of_groups = 0;
    for (uint32_t experts = 0; experts < 1U << 12; ++experts) {
      if (std::popcount(experts) != moe.top_k) continue;
      bool allowed = true;
      for (int e = 0; e < 12; ++e) allowed &= (experts >> e & 1) == 0 || (groups >> (e / of_group) & 1) != 0;
      if (!allowed) continue;
      of_groups += 1;
      visits_of_groups += (experts & ((1U << here) - 1)) != 0 ? 1 : 0;
    }
    if (of_groups == 0) continue;
    all += 1, visits += visits_of_groups / of_groups;
  }
  CHECK(chance_of_visit(moe, here) == Approx(visits / all));
}

}  // namespace octet::test
