// Moves tokens to the experts that were chosen for them, and back. A layer asks a Dispatcher and knows no ranks: here
// the experts are all at hand; parallel/ has the one that sends tokens to other ranks.
#pragma once

#include "core/ops/linear_input.h"
#include "core/ops/row_groups.h"

namespace octet {

struct Dispatched {
  LinearInput input;  // what the experts read, through groups.source; x() is the place of the R rows on the tape
  RowGroups groups;   // rows of each local expert
  Tensor row_of;      // [T, K] int32, where the rows of each token are
};

class Dispatcher {
 public:
  virtual ~Dispatcher() = default;
  // input: [T, D]; indices: [T, K] int32 in [0, num_experts).
  virtual Dispatched dispatch(const LinearInput& input, const Tensor& indices, int64_t num_experts) = 0;
  // y[t] = base[t] + sum_k weights[t,k] * rows of expert indices[t,k] for token t. rows: [R, D], as the experts made
  // them.
  virtual Tensor combine(const Tensor& rows, const Dispatched& dispatched, const Tensor& weights,
                         const Tensor& base) = 0;
};

// All experts are on this rank: tokens are read where they lie, through an index.
class LocalDispatcher final : public Dispatcher {
 public:
  Dispatched dispatch(const LinearInput& input, const Tensor& indices, int64_t num_experts) override;
  Tensor combine(const Tensor& rows, const Dispatched& dispatched, const Tensor& weights, const Tensor& base) override;
};

}  // namespace octet
