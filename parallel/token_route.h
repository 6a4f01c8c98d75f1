// Moves tokens to every rank of an expert-parallel group that needs them, one copy to each.
//
// A token is a row of any matrix with T rows: of codes, of scales, of gradients; one route serves all of them, and the
// way is the same each time. What a rank gets are copies: from each rank of the group those of its tokens that this one
// needs, in their order.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/tensor/tensor.h"
#include "parallel/communicator.h"

namespace octet {

// The ranks a dispatch runs over. Without rail and node, copies go straight to their rank; with both, one copy goes to
// each node, to the rank at this rank's place there, which hands it on inside the node (arXiv:2412.19437,
// section 3.2.2).
struct RouteGroups {
  Communicator* ep = nullptr;    // of P ranks
  Communicator* rail = nullptr;  // of ep, the rank at this one's place on each node, in order
  Communicator* node = nullptr;  // of ep, the ranks of this node, in order

  // Throws Error(kArgument) unless there is an ep group, and both of the others, of nodes of at most 64 ranks, or
  // neither.
  void check() const;
  bool is_two_stage() const { return rail != nullptr && rail->size() > 1 && node->size() > 1; }
};

// A matrix on its way.
class TokensInFlight {
 public:
  virtual ~TokensInFlight() = default;
  // It leaves. All ranks call it after the start of the route, for their matrices in the same order.
  virtual void start() = 0;
  // [copies, C]. Waits, and does what is left to do.
  virtual Tensor wait() = 0;
};

class TokenRoute {
 public:
  virtual ~TokenRoute() = default;

  // What a rank has to be told before the first matrix comes: two numbers from each rank of the group.
  static constexpr int64_t kCounts = 2;
  virtual void fill_counts(int to, int64_t* counts) const = 0;
  // counts: [P, kCounts], what each rank has filled in for this one.
  virtual void start(std::span<const int64_t> counts) = 0;

  // x: [T, C], of any dtype. Gathers what goes to other ranks, which needs no counts. The route outlives the result.
  virtual std::unique_ptr<TokensInFlight> gather(const Tensor& x) = 0;

  int64_t num_copies() const { return num_copies_; }                        // that come to this rank
  int64_t first_copy(int from) const { return first_copy_[size_t(from)]; }  // of those from that rank of the group

 protected:
  int64_t num_copies_ = 0;
  std::vector<int64_t> first_copy_;
};

// tokens: for each rank of the group those of this rank that it needs, rising.
std::unique_ptr<TokenRoute> make_token_route(const RouteGroups& groups,
                                             const std::vector<std::vector<int32_t>>& tokens);

}  // namespace octet
