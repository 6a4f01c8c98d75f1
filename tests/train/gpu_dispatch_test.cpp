// The dispatch whose counts stay on the device: against experts at hand on the same device, and its bytes against its
// formula. It also runs on the CPU, where its kernels have their reference.
#include <mutex>

#include "core/tensor/device_fault.h"
#include "parallel/device_dispatcher.h"
#include "parallel/local_communicator.h"
#include "parallel/parallelize.h"
#include "parallel/staged_communicator.h"
#include "tests/support/devices.h"
#include "tests/support/layer_pass.h"
#include "tools/data/made_up_batch.h"
#include "tools/train/model_stats.h"
#include "tools/train/training_step.h"
#include "tools/train/verify.h"

namespace octet::test {
namespace {

constexpr int64_t kHidden = 136, kExperts = 8, kTopK = 3;  // a ragged block of 128 columns

enum class Choice { kEven, kOneExpert, kOneRank };

// Experts of tokens begin .. end - 1.
std::vector<int32_t> choices(Choice choice, int64_t begin, int64_t end) {
  const RandomStream random(3, "choices");
  std::vector<int32_t> indices;
  for (int64_t t = begin; t < end; ++t) {
    const int32_t start = choice == Choice::kEven ? int32_t(random.below(uint64_t(kExperts), uint64_t(t))) : 5;
    for (int32_t k = 0; k < kTopK; ++k) {
      // Token t's first choice is expert 5 always where all visit it, and then others.
      const int32_t step = choice == Choice::kOneRank || k == 0 ? k : k + int32_t(t % 4);
      indices.push_back((start + step) % int32_t(kExperts));
    }
  }
  return indices;
}

struct Pass : LayerPass {
  Traffic ep, rail, node;
};

LayerPass run_chosen(Dispatcher& dispatcher, const Numerics& numerics, Choice choice, int64_t begin, int64_t end,
                     Device device) {
  ModelConfig config;
  config.hidden = kHidden;
  config.init_std = 0.3f;
  config.moe.num_experts = kExperts;
  config.moe.top_k = kTopK;
  config.moe.expert_hidden = 40;
  const Tensor replayed = from_vector(choices(choice, begin, end), {end - begin, kTopK}, device);
  LayerPass pass = run_layer(dispatcher, config, numerics, begin, end, device, replayed);
  DeviceFault(device).rethrow();
  return pass;
}

// A training run in which experts are spread.
Config spread_config(Recipe recipe) {
  Config config;
  config.model.layers = 1;
  config.model.hidden = 64;
  config.model.heads = 2;
  config.model.kv_heads = 1;
  config.model.dense_layers = 0;
  config.model.vocab_size = 50;
  config.model.moe.num_experts = 4;
  config.model.moe.top_k = 2;
  config.model.moe.shared_experts = 1;
  config.model.moe.expert_hidden = 32;
  config.precision.recipe = recipe;
  config.precision.emulation = Fp8Arithmetic::kHopper;
  config.data.seq_len = 8;
  config.train.batch_size = 4;
  config.train.micro_batch = 1;
  config.optim.lr = 0.001;
  config.device = DeviceType::kCuda;
  return config;
}

}  // namespace

TEST_CASE("experts on several ranks, counted on the device, are experts on one", "[train][gpu][dispatch]") {
  const Device device = GENERATE(from_range(devices_here()));
  struct Numbers {
    Recipe recipe;
    Wire wire;
    GradientWire gradients;
  };
  const Numbers numbers = GENERATE(Numbers{Recipe::kFp32, Wire::kBf16, GradientWire::kActivation},
                                   Numbers{Recipe::kBf16, Wire::kFp8, GradientWire::kActivation},
                                   Numbers{Recipe::kFp8Block, Wire::kFp8, GradientWire::kFp8},
                                   Numbers{Recipe::kFp8Block, Wire::kBf16, GradientWire::kActivation});
  struct Case {
    int ranks, ranks_per_node;
    Choice choice;
  };
  const auto [ranks, ranks_per_node, choice] =
      GENERATE(Case{2, 2, Choice::kEven}, Case{4, 4, Choice::kEven}, Case{4, 4, Choice::kOneExpert},
               Case{2, 2, Choice::kOneRank}, Case{4, 2, Choice::kEven}, Case{4, 2, Choice::kOneExpert},
               Case{8, 2, Choice::kEven}, Case{8, 4, Choice::kOneRank});
  CAPTURE(device, name_of(numbers.recipe), name_of(numbers.wire), ranks, ranks_per_node, int(choice));
  const Numerics numerics{
      .recipe = numbers.recipe, .emulation = kernels::Emulation::kHopper, .expert_gradients = numbers.gradients};
  std::vector<int64_t> begin = {0};
  for (int r = 0; r < ranks; ++r) begin.push_back(begin.back() + (r == 1 ? 0 : r == 2 ? 2 : 11 + r));
  LocalDispatcher local;
  const LayerPass wanted = run_chosen(local, numerics, choice, 0, begin.back(), device);
  std::vector<Pass> got(static_cast<size_t>(ranks));
  const auto errors =
      run_local_ranks(ranks, {.communicator = {}, .seed = 5, .max_delay_us = 50, .faults = {}}, [&](Communicator& c) {
        const auto staged = device.is_cpu() ? nullptr : make_staged_communicator(c, device);
        Communicator& world = staged ? *staged : c;
        const int S = ranks_per_node;
        const Mesh mesh = make_mesh({.world = ranks, .ranks_per_node = S, .dp = ranks, .ep = ranks}, c.rank());
        const auto ep = world.group(mesh.ep_group, "ep"), rail = world.group(mesh.ep_rail_group, "rail"),
                   node = world.group(mesh.ep_node_group, "node");
        DeviceDispatcher dispatcher({.ep = ep.get(), .rail = rail.get(), .node = node.get()}, numbers.wire,
                                    /*bound=*/0);
        const auto r = size_t(c.rank());
        static_cast<LayerPass&>(got[r]) = run_chosen(dispatcher, numerics, choice, begin[r], begin[r + 1], device);
        got[r].ep = ep->traffic(), got[r].rail = rail->traffic(), got[r].node = node->traffic();
      });
  rethrow_first(errors);
  LayerPass all;
  for (const Pass& pass : got) all.append(pass);
  CHECK(all.y == wanted.y);
  CHECK(all.dx == wanted.dx);
  CHECK(all.w13 == wanted.w13);
  CHECK(all.w2 == wanted.w2);

  // Room for the rank that has the most tokens, whatever they choose; and how many tokens each has.
  const int64_t P = ranks, L = kExperts / P, T = ranks == 2 ? 11 : 10 + ranks, R = T * std::min<int64_t>(kTopK, L);
  const bool is_fp8 = numbers.recipe == Recipe::kFp8Block;
  const int64_t value_bytes = kHidden * (numbers.recipe == Recipe::kFp32 ? 4 : 2), code_bytes = kHidden + 2 * 4;
  const int64_t token_bytes = is_fp8 && numbers.wire == Wire::kFp8 ? code_bytes : value_bytes;
  const int64_t gradient_bytes = numbers.gradients == GradientWire::kFp8 ? code_bytes : value_bytes;
  const int64_t tokens = T * (token_bytes + gradient_bytes);
  const int64_t others = 8 * P + 4 * (L + R) + R * value_bytes + 4 * R + R * (value_bytes + 4);
  const int64_t N = ranks / ranks_per_node, S = ranks_per_node;
  for (const Pass& pass : got) {
    CHECK(pass.ep.bytes() == (P - 1) * (others + (N == 1 ? tokens : 0)));
    CHECK(pass.rail.bytes() == (N == 1 ? 0 : (N - 1) * (tokens + 8 * T)));
    CHECK(pass.node.bytes() == (N == 1 ? 0 : (S - 1) * N * tokens));
  }
}

TEST_CASE("without tokens there is nothing to send", "[train][gpu][dispatch]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  const auto errors = run_local_ranks(2, {}, [&](Communicator& c) {
    const auto staged = device.is_cpu() ? nullptr : make_staged_communicator(c, device);
    DeviceDispatcher dispatcher({.ep = staged ? staged.get() : &c}, Wire::kFp8, /*bound=*/2);
    const Numerics numerics{.recipe = Recipe::kFp8Block, .emulation = kernels::Emulation::kHopper};
    const LayerPass pass = run_chosen(dispatcher, numerics, Choice::kEven, 0, 0, device);
    require(pass.y.empty() && pass.dx.empty(), "rows out of nothing");
  });
  rethrow_first(errors);
}

TEST_CASE("room in a message", "[train][dispatch]") {
  const auto is = [](const DispatchRoom& room, int64_t copies, int64_t rows, int64_t node_copies) {
    CAPTURE(room.copies, room.rows, room.node_copies);
    CHECK((room.copies == copies && room.rows == rows && room.node_copies == node_copies));
  };
  is(dispatch_room(/*tokens=*/100, /*top_k=*/6, /*num_experts=*/64, /*ranks=*/8, /*ranks_per_node=*/2, /*bound=*/0),
     100, 600, 100);
  is(dispatch_room(100, 6, 64, 32, 8, 0), 100, 200, 100);   // two experts on a rank
  is(dispatch_room(100, 6, 64, 8, 1, 1), 75, 75, 75);       // the even share
  is(dispatch_room(100, 6, 64, 32, 4, 1), 19, 19, 76);      // of each rank of a node
  is(dispatch_room(100, 6, 64, 8, 4, 1.5), 100, 113, 100);  // rounded up
  is(dispatch_room(100, 6, 64, 8, 4, 50), 100, 600, 100);   // never more than there can be
  is(dispatch_room(0, 6, 64, 8, 4, 2), 0, 0, 0);
}

TEST_CASE("experts spread over ranks on GPUs are one rank, bit for bit", "[train][gpu][layout]") {
  if (!has_gpu()) return;
  Config config = spread_config(Recipe::kBf16);
  config.parallel.dp = config.parallel.ep = 2;
  SECTION("room for all, two groups, FP8") {
    config.precision.recipe = Recipe::kFp8Block;
    config.parallel.dp = 4;
  }
  SECTION("by way of nodes") {
    config.precision.recipe = Recipe::kFp8Block;
    config.parallel.dp = config.parallel.ep = 4;
    config.parallel.ranks_per_node = 2;
    config.parallel.two_stage = TwoStage::kOn;
  }
  SECTION("bounded, in turn, blocks computed again") {
    config.parallel.dispatch_bound = 1.9;  // of 2 at most
    config.parallel.interleave = 2;
    config.train.recompute = {Recompute::kBlock};
  }
  LayoutResult result;
  const auto errors =
      run_local_ranks(int(config.parallel.dp), {.communicator = {}, .seed = 3, .max_delay_us = 50, .faults = {}},
                      [&](Communicator& world) {
                        const LayoutResult mine = verify_layout(config, 5, world);
                        if (world.rank() == 0) result = mine;
                      });
  rethrow_first(errors);
  INFO(result.first_difference);
  CHECK(result.is_equal());
  CHECK(result.tensors > 15);
}

TEST_CASE("what ranks on GPUs send and hold is predicted", "[train][gpu][layout]") {
  if (!has_gpu()) return;
  Config config = spread_config(GENERATE(Recipe::kBf16, Recipe::kFp8Block));
  config.model.layers = 2, config.model.moe.expert_hidden = 128;
  config.data.seq_len = 64;
  const int ranks_here = GENERATE(2, 4);
  config.parallel.dp = config.parallel.ep = ranks_here;
  config.parallel.ranks_per_node = 2, config.parallel.two_stage = TwoStage::kOn;  // of one node or of two
  config.parallel.dispatch_bound = config.precision.recipe == Recipe::kBf16 ? 0.0 : 1.9;
  CAPTURE(name_of(config.precision.recipe), config.parallel.dispatch_bound, ranks_here);
  release_kept_memory();
  const MemoryUse before = memory_use(kGpu);
  std::vector<int64_t> sent(size_t(ranks_here), 0);
  MemoryUse after;
  const auto errors = run_local_ranks(ranks_here, {}, [&](Communicator& host) {
    const auto world = make_staged_communicator(host, kGpu);
    const Ranks ranks(*world, config.parallel, config.model, kGpu);
    Transformer model(config.model, config.precision, recompute_parts(config.train), config.data.seq_len,
                      ranks.make_dispatcher(), kGpu);
    const auto shards = ranks.shard(model);
    AdamW optimizer(model.parameters(), config.optim, moments_dtype(config.precision), world.get());
    model.init_weights(1);
    shards->gather_weights();
    const StepRanks together{.world = world.get(), .shards = shards.get()};
    const StepPlan plan = plan_step(config, world->rank());
    world->barrier();
    if (world->rank() == 0) reset_peak_memory(kGpu);
    world->barrier();
    const StepLosses losses(plan, kGpu);
    optimizer.prepare(1, config.optim.lr);
    const auto tokens_of = [&](int64_t m) {
      return tokens_on(kGpu, made_up_batch(7, m, plan.sequences, plan.seq_len, config.model.vocab_size));
    };
    run_micro_batches(model, plan, tokens_of, losses, together);
    optimizer.measure();
    sum_step(model, optimizer, plan, losses, together);
    apply_update(model, optimizer, losses, nullptr, together);
    // Of the dispatch: not those who hold the same experts.
    for (Communicator* group : ranks.groups()) {
      if (group != &ranks.experts()) sent[size_t(world->rank())] += group->traffic().bytes();
    }
    world->barrier();
    if (world->rank() == 0) after = memory_use(kGpu);
    world->barrier();
  });
  rethrow_first(errors);
  int64_t predicted = 0;
  for (int64_t rank = 0; rank < ranks_here; ++rank) {
    const WireBytes wire = wire_bytes(config, 0, rank);
    CHECK(double(sent[size_t(rank)]) == wire.counts.bytes + wire.tokens_out.bytes + wire.rows_back.bytes +
                                            wire.gradients_out.bytes + wire.gradients_back.bytes);
    const MemoryEstimate memory = estimate_memory(config, 0, rank);
    CAPTURE(memory.activations, memory.workspace);
    predicted += memory.total() - std::max<int64_t>(0, memory.saving - memory.activations - memory.workspace -
                                                           memory.reduction - memory.transposed);
  }
  int64_t held_before = 0;
  for (const int64_t bytes : before.current_bytes) held_before += bytes;
  // The sum of the ranks' peaks, which of four come at moments of their own.
  const double tolerance = ranks_here == 2 ? 0.1 : 0.2;
  CHECK(double(predicted) == Approx(double(after.peak_total_bytes - held_before)).epsilon(tolerance));
}

TEST_CASE("rows for which a message has no room end the step, with rank, count and bound", "[train][gpu][dispatch]") {
  if (!has_gpu()) return;
  Config config = spread_config(Recipe::kBf16);
  config.parallel.dp = config.parallel.ep = 2;
  config.parallel.dispatch_bound = 1;  // what a new router keeps to by chance only
  const auto errors = run_local_ranks(2, {}, [&](Communicator& world) { verify_layout(config, 1, world); });
  // Ranks that are threads share a GPU and its record: another may be there still.
  try {
    DeviceFault(kGpu).rethrow();
  } catch (const Error&) {
  }
  bool is_config = false;  // of the rank that found it; the other was told
  for (const std::exception_ptr& error : errors) {
    REQUIRE(error != nullptr);
    try {
      std::rethrow_exception(error);
    } catch (const Error& fault) {
      INFO(fault.block());
      is_config = is_config || fault.kind() == ErrorKind::kConfig;
      CHECK_THAT(fault.block(), Catch::Contains("rows for the experts of rank ") &&
                                    Catch::Contains("; parallel.dispatch_bound leaves room for 8"));
    }
  }
  CHECK(is_config);
}

}  // namespace octet::test
