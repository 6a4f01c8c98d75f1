// Fits a model to the ranks of a run: who works with whom, how its tokens reach their experts, and who holds what of
// its masters and moments.
#pragma once

#include <memory>

#include "core/nn/transformer.h"
#include "parallel/communicator.h"
#include "parallel/parallel_config.h"
#include "parallel/parameter_shards.h"

namespace octet {

// The communicators of one rank. All ranks make theirs at the same time, at the start of a run.
class Ranks {
 public:
  // world: of parallel.dp ranks; outlives this. model: says whether routing is limited to groups. device: of its
  // tokens. Throws Error(kConfig) where the layout does not fit the ranks, the nodes or the experts.
  Ranks(Communicator& world, const ParallelConfig& config, const ModelConfig& model, Device device = {});

  Communicator& world() const { return world_; }
  Communicator& ep() const { return *ep_; }
  Communicator& experts() const { return *experts_; }  // the ranks that hold the same experts
  const Mesh& mesh() const { return mesh_; }
  bool is_two_stage() const { return route_.is_two_stage(); }
  // Of all communicators but the world's own: what dispatch has sent, and what reductions of experts have.
  std::vector<Communicator*> groups() const;

  // For the model that Transformer builds; the groups outlive it.
  std::unique_ptr<Dispatcher> make_dispatcher() const;
  // For a model of which nothing was made yet.
  std::unique_ptr<ParameterShards> shard(Transformer& model, const ShardOptions& options = {}) const;

 private:
  Communicator& world_;
  const ParallelConfig config_;
  const Device device_;
  Mesh mesh_;
  std::unique_ptr<Communicator> ep_, experts_, rail_, node_;
  RouteGroups route_;
};

}  // namespace octet
