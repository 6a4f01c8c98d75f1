// A layer whose experts lie on several ranks computes what it computes on one, with the same bits, and sends the bytes
// that its routing says.
#include "parallel/expert_dispatcher.h"

#include <mutex>
#include <numeric>

#include "core/nn/precision_config.h"
#include "parallel/local_communicator.h"
#include "parallel/mesh.h"
#include "tests/parallel/communicator_cases.h"
#include "tests/support/layer_pass.h"

namespace octet::test {
namespace {

constexpr int64_t kHidden = 136, kExperts = 8;  // a ragged block of 128 columns

ModelConfig layer_config(int64_t top_k) {
  ModelConfig config;
  config.hidden = kHidden;
  config.init_std = 0.3f;
  config.moe.num_experts = kExperts;
  config.moe.top_k = top_k;
  config.moe.shared_experts = 1;
  config.moe.expert_hidden = 40;
  return config;
}

struct Pass : LayerPass {
  Traffic ep, rail, node;
};

// The choices of the tokens, for the test of bytes.
std::vector<int32_t> choices(const Numerics& numerics, int64_t top_k, int64_t begin, int64_t end) {
  const ModelConfig config = layer_config(top_k);
  ModelContext context{.numerics = numerics, .recompute = {}};
  Router router("mlp.gate.", config, context);
  router.visit_parameters([&](Parameter& parameter) {
    init_normal(parameter, 7, config.init_std);
    parameter.refresh();
  });
  const LinearInput input(tokens_of(1, begin, end, kHidden, numerics.activation_dtype()), numerics);
  return to_vector<int32_t>(router.forward(input).indices);
}

struct Layout {
  int ranks, ranks_per_node;
};

}  // namespace

TEST_CASE("experts on several ranks are experts on one, bit for bit", "[parallel][dispatch]") {
  const Recipe recipe = GENERATE(Recipe::kFp32, Recipe::kBf16, Recipe::kFp8Block);
  const auto [ranks, ranks_per_node] =
      GENERATE(Layout{1, 1}, Layout{2, 2}, Layout{2, 1}, Layout{4, 4}, Layout{4, 2}, Layout{8, 2}, Layout{8, 4});
  const Wire wire = recipe == Recipe::kFp8Block ? GENERATE(Wire::kFp8, Wire::kBf16) : Wire::kBf16;
  const GradientWire gradients =
      recipe == Recipe::kFp8Block ? GENERATE(GradientWire::kActivation, GradientWire::kFp8) : GradientWire::kActivation;
  CAPTURE(name_of(recipe), ranks, ranks_per_node, name_of(wire), name_of(gradients));
  const Numerics numerics{.recipe = recipe, .expert_gradients = gradients};
  // Tokens of each rank: none on the second, and fewer than there are experts on the third.
  std::vector<int64_t> begin = {0};
  for (int r = 0; r < ranks; ++r) begin.push_back(begin.back() + (r == 1 ? 0 : r == 2 ? 2 : 37 + r));

  // With 6 of 8, nearly all tokens of a rank need each of four.
  const int64_t top_k = recipe == Recipe::kBf16 ? 6 : 3;
  LocalDispatcher local;
  const ModelConfig config = layer_config(top_k);
  const LayerPass wanted = run_layer(local, config, numerics, 0, begin.back());
  std::vector<Pass> got(static_cast<size_t>(ranks));
  const auto errors =
      run_local_ranks(ranks, {.communicator = {}, .seed = 5, .max_delay_us = 200, .faults = {}}, [&](Communicator& c) {
        const Mesh mesh =
            make_mesh({.world = ranks, .ranks_per_node = ranks_per_node, .dp = ranks, .ep = ranks}, c.rank());
        const auto ep = c.group(mesh.ep_group, "ep"), rail = c.group(mesh.ep_rail_group, "rail");
        const auto node = c.group(mesh.ep_node_group, "node");
        ExpertDispatcher dispatcher({.ep = ep.get(), .rail = rail.get(), .node = node.get()}, wire);
        Pass& pass = got[size_t(c.rank())];
        static_cast<LayerPass&>(pass) =
            run_layer(dispatcher, config, numerics, begin[size_t(c.rank())], begin[size_t(c.rank()) + 1]);
        pass.ep = ep->traffic(), pass.rail = rail->traffic(), pass.node = node->traffic();
      });
  rethrow_first(errors);

  LayerPass all;
  for (const Pass& pass : got) all.append(pass);
  CHECK(all.y == wanted.y);
  CHECK(all.dx == wanted.dx);
  CHECK(all.w13 == wanted.w13);
  CHECK(all.w2 == wanted.w2);

  // The bytes of the routing, counted in plain words.
  const std::vector<int32_t> indices = choices(numerics, top_k, 0, begin.back());
  const bool is_fp8 = recipe == Recipe::kFp8Block, two_stage = ranks_per_node > 1 && ranks_per_node < ranks;
  const int64_t value_bytes = kHidden * (recipe == Recipe::kFp32 ? 4 : 2), code_bytes = kHidden + 2 * 4;
  const int64_t forward_bytes = is_fp8 && wire == Wire::kFp8 ? code_bytes : value_bytes;
  const int64_t backward_bytes = gradients == GradientWire::kFp8 ? code_bytes : value_bytes;
  // The ranks that each token goes to.
  std::vector<std::vector<bool>> goes_to(size_t(begin.back()), std::vector<bool>(size_t(ranks)));
  for (size_t pair = 0; pair < indices.size(); ++pair) {
    goes_to[pair / top_k][size_t(indices[pair] / int(kExperts / ranks))] = true;
  }
  int whole = 0;
  for (size_t home = 0; home < size_t(ranks); ++home) {
    for (size_t to = 0; to < size_t(ranks); ++to) {
      const auto first = goes_to.begin() + begin[home], end = goes_to.begin() + begin[home + 1];
      const auto count = std::count_if(first, end, [to](const auto& ranks_of) { return ranks_of[to]; });
      if (!goes_whole(count, end - first)) continue;
      whole += count < end - first;
      std::for_each(first, end, [to](auto& ranks_of) { ranks_of[to] = true; });
    }
  }
  if (top_k == 6 && ranks == 4) CHECK(whole > 0);
  for (int r = 0; r < ranks; ++r) {
    CAPTURE(r);
    int64_t rows_out = 0, rows_in = 0, to_ranks = 0, to_nodes = 0, handed_on = 0;
    for (int64_t t = 0; t < begin.back(); ++t) {
      const auto home = int(std::upper_bound(begin.begin(), begin.end(), t) - begin.begin()) - 1;
      const std::vector<bool>& rank_needs = goes_to[size_t(t)];
      std::vector<bool> node_needs(static_cast<size_t>(ranks));
      for (int64_t k = 0; k < top_k; ++k) {
        const int to = indices[size_t(t * top_k + k)] / int(kExperts / ranks);
        rows_out += home == r && to != r;
        rows_in += home != r && to == r;
      }
      for (int to = 0; to < ranks; ++to) {
        if (rank_needs[size_t(to)]) node_needs[size_t(to / ranks_per_node)] = true;
      }
      const int node = r / ranks_per_node;
      if (home == r) {
        for (int to = 0; to < ranks; ++to) to_ranks += to != r && rank_needs[size_t(to)];
        for (int to = 0; to * ranks_per_node < ranks; ++to) to_nodes += to != node && node_needs[size_t(to)];
      }
      if (home % ranks_per_node == r % ranks_per_node) {  // this rank hands it on inside its node
        for (int to = node * ranks_per_node; to < (node + 1) * ranks_per_node; ++to) {
          handed_on += to != r && rank_needs[size_t(to)];
        }
      }
    }
    const int64_t counts = (ranks - 1) * (kExperts / ranks + TokenRoute::kCounts) * 8;
    // Which token and which weight, 4 bytes each, for a row out; and a row back in either pass, with the gradient of
    // its weight.
    int64_t ep_bytes = counts + rows_out * (4 + 4) + rows_in * (2 * value_bytes + 4);
    if (!two_stage) ep_bytes += to_ranks * (forward_bytes + backward_bytes);
    CHECK(got[size_t(r)].ep.bytes() == ep_bytes);
    CHECK(got[size_t(r)].rail.bytes() == (two_stage ? to_nodes * (8 + forward_bytes + backward_bytes) : 0));
    CHECK(got[size_t(r)].node.bytes() == (two_stage ? handed_on * (forward_bytes + backward_bytes) : 0));
  }
}

TEST_CASE("experts that do not divide over the ranks are refused with the numbers that do", "[parallel][dispatch]") {
  const auto errors = run_local_ranks(3, {}, [&](Communicator& c) {
    const ExpertDispatcher dispatcher({.ep = &c}, Wire::kFp8);
    try {
      dispatcher.experts_at_hand(8);
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::kConfig &&
          std::string(error.what()).find("leave 2 over; ep divides 8: 1, 2, 4 or 8") != std::string::npos) {
        return;
      }
    }
    throw std::runtime_error("taken");
  });
  for (const std::exception_ptr& error : errors) CHECK(error == nullptr);
}

}  // namespace octet::test
