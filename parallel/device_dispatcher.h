// Dispatch to experts that lie on several ranks, for tokens on a GPU: what ExpertDispatcher computes, with its bits,
// while the host reads no number that a GPU made.
//
// So a message has one size, whatever tokens choose: room for DispatchRoom::copies tokens, each once, and for rows of
// experts; what is in it is said in it (kernels/rank_rows.h). The room is that of the rank with the most tokens: hosts
// tell each other how many they have, and nothing else. Where there are more rows than room, the GPU records it for
// whoever reads its faults (core/tensor/device_fault.h): the pass goes on with what there is room for, and is refused.
//
//   forward   heads, 4 bytes for each expert and each row; 4 bytes a row, of the weights; tokens out as Wire says; rows
//             back
//   backward  gradients of the layer's output out; gradients of the tokens back, a row for each expert, and 4 bytes a
//             row, of the weights
//
// In two stages tokens out go by way of the rail and of the node (parallel/token_route.h), in messages with room for
// DispatchRoom::node_copies and for DispatchRoom::copies from each node; and once before them, over the rail, 8 bytes a
// copy, which say who needs it. All else goes straight.
#pragma once

#include "parallel/expert_dispatcher.h"

namespace octet {

// What a message of a dispatch has room for.
struct DispatchRoom {
  int64_t copies = 0;       // of tokens
  int64_t rows = 0;         // of experts
  int64_t node_copies = 0;  // of tokens that go to a node
};
// tokens: of the rank that has the most. bound: times the rows that go to each of the ranks where all get equally many;
// 0: room for whatever tokens choose.
DispatchRoom dispatch_room(int64_t tokens, int64_t top_k, int64_t num_experts, int64_t ranks, int64_t ranks_per_node,
                           double bound);

class DeviceDispatcher final : public Dispatcher {
 public:
  // The communicators move memory of the GPU; they outlive this, and the passes of a model that it serves.
  DeviceDispatcher(const RouteGroups& groups, Wire wire, double bound);
  ExpertRange experts_at_hand(int64_t num_experts) const override;
  std::unique_ptr<Dispatch> start(const LinearInput& input, const Tensor& indices, const Tensor& weights,
                                  int64_t num_experts) override;

 private:
  RouteGroups groups_;
  Wire wire_;
  double bound_;
};

}  // namespace octet
