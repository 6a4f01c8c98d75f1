// Dispatch to experts that lie on several ranks: of an expert-parallel group of P ranks, rank p holds experts
// p E / P .. (p + 1) E / P - 1. A layer computes what it computes with all experts at hand, with the same bits: a token
// comes to each rank that holds an expert of its choice, once, and the rows of experts go back one by one, so that they
// are added up where the token lives, in the order of its choices.
//
//   forward   tokens out   E4M3 codes and their scales, or values (Wire); 8 bytes more for each row of an expert, its
//             weight among them
//             rows back    in the activation dtype
//   backward  gradients of the layer's output out, as expert_gradients says (core/ops/numerics.h)
//             gradients of the tokens back, a row for each expert, in the activation dtype, and 4 bytes a row, of the
//             weights
//
// A rank that needs nearly all tokens (goes_whole) gets all of them, which then leave from where they lie.
//
// Rows of an expert lie in the order of their rank, then of their token: as if the tokens of the group were those of
// one rank. Each step may start before the last is done (core/nn/dispatcher.h).
#pragma once

#include "core/base/enum_names.h"
#include "core/nn/dispatcher.h"
#include "parallel/token_route.h"

namespace octet {

// How tokens travel to experts. The bits that the experts read are the same.
enum class Wire {
  kFp8,   // as fp8_block reads them: half the bytes; other recipes send values
  kBf16,  // values in the activation dtype, quantised where they arrive
};
template <>
struct EnumNames<Wire> {
  static constexpr std::pair<Wire, std::string_view> values[] = {{Wire::kFp8, "fp8"}, {Wire::kBf16, "bf16"}};
};

// Of a rank's T tokens, whether all go to a rank that needs `count` of them: gathering them costs more.
constexpr bool goes_whole(int64_t count, int64_t T) { return count >= T - T / 16; }

// Of num_experts, those of this rank of the group. Throws Error(kConfig) where they do not divide.
ExpertRange experts_of_rank(const Communicator& ep, int64_t num_experts);

class ExpertDispatcher final : public Dispatcher {
 public:
  // The communicators outlive this, and the passes of a model that it serves.
  ExpertDispatcher(const RouteGroups& groups, Wire wire);
  ExpertRange experts_at_hand(int64_t num_experts) const override;
  std::unique_ptr<Dispatch> start(const LinearInput& input, const Tensor& indices, const Tensor& weights,
                                  int64_t num_experts) override;

 private:
  RouteGroups groups_;
  Wire wire_;
};

}  // namespace octet
