// Which rank works with which: the axes of a run, as a pure function of sizes and of the rank.
//   dp  data parallel. Each rank reads samples of its own, all hold the dense weights, and the world is dp ranks.
//   ep  expert parallel, inside dp. Each ep neighbouring ranks hold one copy of all experts between them; the dp / ep
//       ranks at the same place of their ep groups hold the same experts.
// With dp 8 and ep 4, rank 5 has the ep group 4 5 6 7 and the expert-data group 1 5.
//
// Nodes hold equally many ranks, in a row. An ep group lies inside a node or fills whole nodes, so that dispatch can
// send one copy of a token to a node and spread it there.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace octet {

struct MeshShape {
  int64_t world = 1;           // ranks of the launch
  int64_t ranks_per_node = 1;  // as many as world, or more, where all are on one node
  int64_t dp = 1;
  int64_t ep = 1;
};

// The groups of one rank, as ranks of the world in increasing order.
struct Mesh {
  MeshShape shape;
  int rank = 0;
  std::vector<int> dp_group;           // all: dense gradients are reduced over it, optimizer state is cut over it
  std::vector<int> ep_group;           // tokens are dispatched to experts inside it
  std::vector<int> expert_data_group;  // holds the same experts: their gradients are reduced over it
  std::vector<int> ep_node_group;      // of ep_group, the ranks on this node
  std::vector<int> ep_rail_group;  // of ep_group, the rank at this one's place among those of its node, of each node
  int64_t node() const { return rank / shape.ranks_per_node; }
};

// Throws Error(kConfig) that names the divisors that work where the sizes do not fit each other.
Mesh make_mesh(const MeshShape& shape, int rank);

// Ranks per node, from the host of every rank. Throws Error(kConfig) where the ranks of a host are not in a row, or
// hosts have unequally many.
int64_t ranks_per_node(std::span<const std::string> hosts);

// In increasing order; n >= 1.
std::vector<int64_t> divisors_of(int64_t n);
// "1, 2, 4 or 8"
std::string list_choices(std::span<const int64_t> values);

}  // namespace octet
