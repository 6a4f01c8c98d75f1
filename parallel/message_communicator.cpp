#include "parallel/message_communicator.h"

#include <fmt/format.h>

#include <algorithm>

#include "parallel/message_world.h"

namespace octet {
namespace {

using message::Group;
using message::Op;
using message::World;

class MessageWork final : public Pending::Work {
 public:
  MessageWork(std::shared_ptr<World> world, std::shared_ptr<Op> op) : world_(std::move(world)), op_(std::move(op)) {}
  bool is_done() override { return world_->is_done(*op_); }
  void wait() override { world_->wait(*op_); }
  void give_up() noexcept override {
    world_->give_up(ErrorKind::kCommunication,
                    fmt::format("an error ended it during {}, number {} of group {}", name_of(op_->call.operation),
                                op_->number, op_->group->name),
                    op_.get());
  }

 private:
  std::shared_ptr<World> world_;
  std::shared_ptr<Op> op_;
};

class MessageCommunicator final : public Communicator {
 public:
  MessageCommunicator(std::shared_ptr<World> world, std::shared_ptr<Group> group)
      : Communicator(group->me, group->size(), group->name), world_(std::move(world)), group_(std::move(group)) {}

  int world_rank(int rank) const override { return group_->ranks[size_t(rank)]; }
  const std::string& host(int rank) const override { return world_->hosts()[size_t(world_rank(rank))]; }

  std::unique_ptr<Communicator> group(std::span<const int> ranks, std::string name) override {
    std::vector<int> members;
    for (const int rank : ranks) {
      require(0 <= rank && rank < size(), "group {}: rank {}; wanted 0 to {}", name, rank, size() - 1);
      members.push_back(world_rank(rank));
    }
    std::vector<int> sorted = members;
    std::sort(sorted.begin(), sorted.end());
    require(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(), "group {}: a rank is there twice", name);
    require(std::binary_search(sorted.begin(), sorted.end(), world_->rank()),
            "group {}: rank {} makes it and is not in it", name, world_->rank());
    return std::make_unique<MessageCommunicator>(world_, world_->make_group(std::move(members), std::move(name)));
  }

  void set_phase(std::string_view phase) override { world_->set_phase(phase); }
  void progress() override { world_->progress(); }
  void abort(ErrorKind kind, std::string_view reason) noexcept override { world_->give_up(kind, reason); }
  Pending start(CollectiveCall call, Stream& stream) override {
    auto op = world_->start(group_, std::move(call), stream, &traffic_);
    return Pending(std::make_shared<MessageWork>(world_, std::move(op)));
  }

 private:
  std::shared_ptr<World> world_;
  std::shared_ptr<Group> group_;
};

}  // namespace

std::unique_ptr<Communicator> make_message_communicator(std::unique_ptr<Transport> transport,
                                                        const CommunicatorOptions& options) {
  auto world = std::make_shared<World>(std::move(transport), options);
  auto group = world->make_world_group();
  world->meet(group);
  group->collectives = 0;
  return std::make_unique<MessageCommunicator>(std::move(world), std::move(group));
}

}  // namespace octet
