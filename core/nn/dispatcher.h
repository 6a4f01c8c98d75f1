// Moves tokens to the experts that were chosen for them, and back. A layer asks a Dispatcher and knows no ranks: here
// the experts are all at hand; parallel/ has the one that sends tokens to other ranks.
#pragma once

#include <memory>

#include "core/ops/linear_input.h"
#include "core/ops/row_groups.h"

namespace octet {

// The experts that are at hand: first .. first + count - 1.
struct ExpertRange {
  int64_t first = 0, count = 0;
};

struct Dispatched {
  LinearInput input;  // what the experts read, through groups.source; x() is the place of the R rows on the tape
  RowGroups groups;   // rows of each expert at hand
  Tensor weights;     // [R] float32, of each row, on the tape
};

// The tokens of one layer and micro-batch, on their way. The calls come in this order; what is computed between them
// goes on while tokens move, in the forward pass and, the other way round, in the backward pass.
class Dispatch {
 public:
  virtual ~Dispatch() = default;
  virtual void send() = 0;          // tokens leave
  virtual Dispatched arrive() = 0;  // they are here
  // rows: [R, D], as the experts made them of what arrived, times their weights. They leave. Backwards, what comes is
  // read through groups.source, as the tokens are.
  virtual void send_back(const Tensor& rows) = 0;
  // y[t] = base[t] + sum_k row of expert indices[t,k] for token t.
  virtual Tensor combine(const Tensor& base) = 0;
};

class Dispatcher {
 public:
  virtual ~Dispatcher() = default;
  virtual ExpertRange experts_at_hand(int64_t num_experts) const = 0;
  // input: [T, D]; indices: [T, K] int32 in [0, num_experts); weights: [T, K] float32.
  virtual std::unique_ptr<Dispatch> start(const LinearInput& input, const Tensor& indices, const Tensor& weights,
                                          int64_t num_experts) = 0;
};

// All experts are on this rank: tokens are read where they lie, through an index.
class LocalDispatcher final : public Dispatcher {
 public:
  ExpertRange experts_at_hand(int64_t num_experts) const override { return {.first = 0, .count = num_experts}; }
  std::unique_ptr<Dispatch> start(const LinearInput& input, const Tensor& indices, const Tensor& weights,
                                  int64_t num_experts) override;
};

}  // namespace octet
