// Rows of a matrix, chosen by an index, to the ranks of a group: the all_to_all_v of a dispatch. A rank's rows for
// itself go straight to their place.
#pragma once

#include <vector>

#include "core/tensor/tensor.h"
#include "parallel/communicator.h"

namespace octet {

class RowExchange {
 public:
  RowExchange() = default;
  // x: [R, C] of any dtype. index: [sum of counts_to] int32, the rows for each rank, one rank after the other; not
  // defined: all rows in order. counts_from: rows that come from each rank.
  RowExchange(Communicator& ranks, const Tensor& x, const Tensor& index, const std::vector<int64_t>& counts_to,
              const std::vector<int64_t>& counts_from);

  // [sum of counts_from, C], by rank. Lets go of what was sent.
  Tensor wait();

 private:
  Tensor sent_, received_;
  Pending pending_;
};

}  // namespace octet
