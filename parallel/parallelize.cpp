#include "parallel/parallelize.h"

#include "parallel/device_dispatcher.h"

namespace octet {
namespace {

int64_t ranks_per_node_of(const Communicator& world, const ParallelConfig& config) {
  if (config.ranks_per_node > 0) return config.ranks_per_node;
  std::vector<std::string> hosts;
  for (int r = 0; r < world.size(); ++r) hosts.push_back(world.host(r));
  return ranks_per_node(hosts);
}

}  // namespace

Ranks::Ranks(Communicator& world, const ParallelConfig& config, const ModelConfig& model, Device device)
    : world_(world),
      config_(config),
      device_(device),
      mesh_(make_mesh(
          {.world = world.size(), .ranks_per_node = ranks_per_node_of(world, config), .dp = config.dp, .ep = config.ep},
          world.rank())),
      ep_(world.group(mesh_.ep_group, "ep")),
      experts_(world.group(mesh_.expert_data_group, "experts")) {
  route_.ep = ep_.get();
  if (!config.wants_two_stages(model.moe)) return;
  rail_ = world.group(mesh_.ep_rail_group, "rail");
  node_ = world.group(mesh_.ep_node_group, "node");
  route_.rail = rail_.get();
  route_.node = node_.get();
}

std::vector<Communicator*> Ranks::groups() const {
  std::vector<Communicator*> all = {ep_.get(), experts_.get()};
  if (rail_ != nullptr) all.insert(all.end(), {rail_.get(), node_.get()});
  return all;
}

std::unique_ptr<Dispatcher> Ranks::make_dispatcher() const {
  if (ep_->size() == 1) return std::make_unique<LocalDispatcher>();
  if (!device_.is_cpu()) return std::make_unique<DeviceDispatcher>(route_, config_.wire, config_.dispatch_bound);
  return std::make_unique<ExpertDispatcher>(route_, config_.wire);
}

std::unique_ptr<ParameterShards> Ranks::shard(Transformer& model, const ShardOptions& options) const {
  return std::make_unique<ParameterShards>(model.units(), world_, *experts_, options);
}

}  // namespace octet
