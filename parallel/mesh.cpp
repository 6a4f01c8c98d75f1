#include "parallel/mesh.h"

#include <algorithm>
#include <map>

#include "core/base/error.h"

namespace octet {
namespace {

std::vector<int> every(int64_t first, int64_t end, int64_t step = 1) {
  std::vector<int> ranks;
  for (int64_t r = first; r < end; r += step) ranks.push_back(int(r));
  return ranks;
}

bool fits_nodes(int64_t ep, int64_t ranks_per_node) { return ranks_per_node % ep == 0 || ep % ranks_per_node == 0; }

}  // namespace

Mesh make_mesh(const MeshShape& given, int rank) {
  MeshShape shape = given;
  require(shape.world >= 1 && shape.ranks_per_node >= 1 && 0 <= rank && rank < shape.world,
          "mesh: rank {} of {}, {} per node; wanted at least 1 rank, and a rank below their number", rank, shape.world,
          shape.ranks_per_node);
  require(ErrorKind::kConfig, shape.dp == shape.world,
          "mesh: parallel.dp is {} and {} ranks were started; wanted as many: start {}, or set parallel.dp={}",
          shape.dp, shape.world, shape.dp, shape.world);
  const std::vector<int64_t> divisors = divisors_of(shape.dp);
  require(ErrorKind::kConfig, shape.ep >= 1, "mesh: parallel.ep is {}; wanted {}", shape.ep, list_choices(divisors));
  require(ErrorKind::kConfig, shape.dp % shape.ep == 0,
          "mesh: parallel.dp {} over parallel.ep {} leaves {} ranks over; ep divides {}: {}", shape.dp, shape.ep,
          shape.dp % shape.ep, shape.dp, list_choices(divisors));
  shape.ranks_per_node = std::min(shape.ranks_per_node, shape.world);
  require(ErrorKind::kConfig, shape.world % shape.ranks_per_node == 0,
          "mesh: {} ranks over nodes of {} leave {} over; wanted equally many on every node", shape.world,
          shape.ranks_per_node, shape.world % shape.ranks_per_node);
  std::vector<int64_t> fitting = divisors;
  std::erase_if(fitting, [&](int64_t ep) { return !fits_nodes(ep, shape.ranks_per_node); });
  require(
      ErrorKind::kConfig, fits_nodes(shape.ep, shape.ranks_per_node),
      "mesh: ep groups of {} ranks lie unevenly on nodes of {}; wanted parallel.ep inside a node or of whole nodes: "
      "{}",
      shape.ep, shape.ranks_per_node, list_choices(fitting));

  Mesh mesh;
  mesh.shape = shape;
  mesh.rank = rank;
  const int64_t ep_begin = rank / shape.ep * shape.ep, ep_end = ep_begin + shape.ep;
  mesh.dp_group = every(0, shape.world);
  mesh.ep_group = every(ep_begin, ep_end);
  mesh.expert_data_group = every(rank % shape.ep, shape.world, shape.ep);
  const int64_t node_begin = mesh.node() * shape.ranks_per_node, node_end = node_begin + shape.ranks_per_node;
  mesh.ep_node_group = every(std::max(ep_begin, node_begin), std::min(ep_end, node_end));
  // One rank where the group is inside the node: the step to the next node is then past its end.
  mesh.ep_rail_group = every(ep_begin + (rank - ep_begin) % shape.ranks_per_node, ep_end, shape.ranks_per_node);
  return mesh;
}

int64_t ranks_per_node(std::span<const std::string> hosts) {
  require(!hosts.empty(), "ranks_per_node: no rank; wanted one or more");
  std::map<std::string, size_t> first_rank;
  std::vector<size_t> starts;  // the first rank of each host, in order, and the number of ranks
  for (size_t r = 0; r < hosts.size(); ++r) {
    if (r > 0 && hosts[r] == hosts[r - 1]) continue;
    const auto [known, is_new] = first_rank.emplace(hosts[r], r);
    require(
        ErrorKind::kConfig, is_new,
        "ranks {} and {} are on host {} and rank {} between them is not; wanted the ranks of a host in a row: start "
        "them with mpirun --map-by slot",
        known->second, r, hosts[r], r - 1);
    starts.push_back(r);
  }
  starts.push_back(hosts.size());
  for (size_t i = 0; i + 1 < starts.size(); ++i) {
    require(ErrorKind::kConfig, starts[i + 1] - starts[i] == starts[1],
            "host {} has {} ranks and host {} {}; wanted equally many on every host", hosts[0], starts[1],
            hosts[starts[i]], starts[i + 1] - starts[i]);
  }
  return int64_t(starts[1]);
}

std::vector<int64_t> divisors_of(int64_t n) {
  require(n >= 1, "divisors_of: {}; wanted 1 or more", n);
  std::vector<int64_t> low, high;
  for (int64_t d = 1; d * d <= n; ++d) {
    if (n % d != 0) continue;
    low.push_back(d);
    if (d * d != n) high.push_back(n / d);
  }
  low.insert(low.end(), high.rbegin(), high.rend());
  return low;
}

std::string list_choices(std::span<const int64_t> values) {
  std::string text;
  for (size_t i = 0; i < values.size(); ++i) {
    text += fmt::format("{}{}", i == 0 ? "" : i + 1 == values.size() ? " or " : ", ", values[i]);
  }
  return text;
}

}  // namespace octet
