#include "parallel/mesh.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <set>

#include "parallel/parallel_config.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

using Ranks = std::vector<int>;

std::string refusal(const MeshShape& shape) {
  const Error error = error_of([&] { make_mesh(shape, 0); });
  CHECK(error.code() == 2);
  return error.report().what;
}

}  // namespace

TEST_CASE("the groups of a rank", "[parallel][mesh]") {
  const Mesh alone = make_mesh({}, 0);
  for (const Ranks& group :
       {alone.dp_group, alone.ep_group, alone.expert_data_group, alone.ep_node_group, alone.ep_rail_group}) {
    CHECK(group == Ranks{0});
  }

  const Mesh one_node = make_mesh({.world = 8, .ranks_per_node = 8, .dp = 8, .ep = 4}, 5);
  CHECK(one_node.dp_group == Ranks{0, 1, 2, 3, 4, 5, 6, 7});
  CHECK(one_node.ep_group == Ranks{4, 5, 6, 7});
  CHECK(one_node.expert_data_group == Ranks{1, 5});
  CHECK(one_node.ep_node_group == Ranks{4, 5, 6, 7});
  CHECK(one_node.ep_rail_group == Ranks{5});
  CHECK(one_node.node() == 0);

  // Three nodes of four ranks; ep over pairs inside a node, and over all nodes.
  const Mesh inside = make_mesh({.world = 12, .ranks_per_node = 4, .dp = 12, .ep = 2}, 7);
  CHECK(inside.ep_group == Ranks{6, 7});
  CHECK(inside.expert_data_group == Ranks{1, 3, 5, 7, 9, 11});
  CHECK(inside.ep_node_group == Ranks{6, 7});
  CHECK(inside.ep_rail_group == Ranks{7});
  CHECK(inside.node() == 1);
  const Mesh across = make_mesh({.world = 12, .ranks_per_node = 4, .dp = 12, .ep = 12}, 7);
  CHECK(across.ep_group.size() == 12);
  CHECK(across.expert_data_group == Ranks{7});
  CHECK(across.ep_node_group == Ranks{4, 5, 6, 7});
  CHECK(across.ep_rail_group == Ranks{3, 7, 11});

  // More room on the node than ranks.
  CHECK(make_mesh({.world = 3, .ranks_per_node = 8, .dp = 3, .ep = 3}, 2).ep_node_group == Ranks{0, 1, 2});
}

TEST_CASE("the groups of all ranks cut the world in every shape", "[parallel][mesh]") {
  int shapes = 0;
  for (int64_t world = 1; world <= 24; ++world) {
    for (const int64_t per_node : divisors_of(world)) {
      for (const int64_t ep : divisors_of(world)) {
        if (per_node % ep != 0 && ep % per_node != 0) continue;
        ++shapes;
        CAPTURE(world, per_node, ep);
        std::vector<Mesh> meshes;
        for (int r = 0; r < world; ++r) {
          meshes.push_back(make_mesh({.world = world, .ranks_per_node = per_node, .dp = world, .ep = ep}, r));
        }
        for (const Mesh& mesh : meshes) {
          const auto agrees = [&](Ranks Mesh::*group, int64_t size) {
            const Ranks& mine = mesh.*group;
            bool is_right = int64_t(mine.size()) == size && std::is_sorted(mine.begin(), mine.end()) &&
                            std::count(mine.begin(), mine.end(), mesh.rank) == 1;
            for (const int other : mine) is_right = is_right && meshes[size_t(other)].*group == mine;
            return is_right;
          };
          const int64_t on_node = std::min(ep, per_node);
          REQUIRE(agrees(&Mesh::dp_group, world));
          REQUIRE(agrees(&Mesh::ep_group, ep));
          REQUIRE(agrees(&Mesh::expert_data_group, world / ep));
          REQUIRE(agrees(&Mesh::ep_node_group, on_node));
          REQUIRE(agrees(&Mesh::ep_rail_group, ep / on_node));
          // An ep group and an expert-data group meet in one rank, and so do node and rail inside an ep group.
          std::set<int> met;
          for (const int other : mesh.ep_node_group) {
            for (const int far : meshes[size_t(other)].ep_rail_group) met.insert(far);
          }
          REQUIRE(Ranks(met.begin(), met.end()) == mesh.ep_group);
          for (const int other : mesh.ep_node_group) REQUIRE(meshes[size_t(other)].node() == mesh.node());
          for (const int other : mesh.expert_data_group) REQUIRE(other % ep == mesh.rank % ep);
        }
      }
    }
  }
  CHECK(shapes > 200);
}

TEST_CASE("sizes that do not fit are refused with those that do", "[parallel][mesh]") {
  CHECK(refusal({.world = 8, .ranks_per_node = 8, .dp = 6, .ep = 1}) ==
        "mesh: parallel.dp is 6 and 8 ranks were started; wanted as many: start 6, or set parallel.dp=8");
  CHECK(refusal({.world = 8, .ranks_per_node = 8, .dp = 8, .ep = 3}) ==
        "mesh: parallel.dp 8 over parallel.ep 3 leaves 2 ranks over; ep divides 8: 1, 2, 4 or 8");
  CHECK(refusal({.world = 8, .ranks_per_node = 8, .dp = 8, .ep = 16}) ==
        "mesh: parallel.dp 8 over parallel.ep 16 leaves 8 ranks over; ep divides 8: 1, 2, 4 or 8");
  CHECK(refusal({.world = 5, .ranks_per_node = 5, .dp = 5, .ep = 0}) == "mesh: parallel.ep is 0; wanted 1 or 5");
  CHECK(refusal({.world = 10, .ranks_per_node = 4, .dp = 10, .ep = 1}) ==
        "mesh: 10 ranks over nodes of 4 leave 2 over; wanted equally many on every node");
  CHECK(refusal({.world = 12, .ranks_per_node = 6, .dp = 12, .ep = 4}) ==
        "mesh: ep groups of 4 ranks lie unevenly on nodes of 6; wanted parallel.ep inside a node or of whole nodes: "
        "1, 2, 3, 6 or 12");
  CHECK_THROWS_AS(make_mesh({.world = 2, .ranks_per_node = 2, .dp = 2, .ep = 1}, 2), Error);
}

TEST_CASE("ranks per node follow from the hosts", "[parallel][mesh]") {
  const auto count = [](const std::vector<std::string>& hosts) { return ranks_per_node(hosts); };
  CHECK(count({"a"}) == 1);
  CHECK(count({"a", "a", "a"}) == 3);
  CHECK(count({"b", "b", "a", "a"}) == 2);
  CHECK(count({"a", "b", "c"}) == 1);
  const auto said = [&](const std::vector<std::string>& hosts) {
    return error_of([&] { count(hosts); }).report().what;
  };
  CHECK(said({"a", "b", "a", "b"}) ==
        "ranks 0 and 2 are on host a and rank 1 between them is not; wanted the ranks of a host in a row: start them "
        "with "
        "mpirun --map-by slot");
  CHECK(said({"a", "a", "b"}) == "host a has 2 ranks and host b 1; wanted equally many on every host");
}

TEST_CASE("divisors and lists of them", "[parallel][mesh]") {
  for (int64_t n = 1; n <= 300; ++n) {
    std::vector<int64_t> want;
    for (int64_t d = 1; d <= n; ++d) {
      if (n % d == 0) want.push_back(d);
    }
    REQUIRE(divisors_of(n) == want);
  }
  CHECK(list_choices(divisors_of(1)) == "1");
  CHECK(list_choices(divisors_of(3)) == "1 or 3");
  CHECK(list_choices(divisors_of(12)) == "1, 2, 3, 4, 6 or 12");
}

TEST_CASE("an ep that does not fit dp is refused, with the divisors that do", "[parallel][mesh]") {
  const auto said = [](int64_t dp, int64_t ep) {
    Problems problems;
    ParallelConfig config;
    config.dp = dp, config.ep = ep;
    config.validate(problems);
    std::string text;
    for (const Problem& problem : problems.found()) text += problem.key + " " + problem.what + "\n";
    return text;
  };
  CHECK(said(1, 1).empty());
  CHECK(said(8, 4).empty());
  CHECK(said(1, 2) == "ep is 2; wanted a divisor of parallel.dp, 1: 1\n");
  CHECK(said(8, 3) == "ep is 3; wanted a divisor of parallel.dp, 8: 1, 2, 4 or 8\n");
  CHECK(said(8, 0) == "ep is 0; wanted a divisor of parallel.dp, 8: 1, 2, 4 or 8\n");
  CHECK(said(int64_t(1) << 62, 3) == "dp is 4611686018427387904; wanted 1 to 1048576\n");
  CHECK(said(0, 0) == "dp is 0; wanted 1 to 1048576\n");
}

}  // namespace octet::test
