// Rows of a matrix to the ranks of a group: the all_to_all_v of a dispatch.
#pragma once

#include <utility>
#include <vector>

#include "core/tensor/tensor.h"
#include "parallel/communicator.h"

namespace octet {

class RowExchange {
 public:
  // Consecutive rows.
  struct Run {
    int64_t first = 0, count = 0;
  };

  RowExchange() = default;
  // x: [R, C] of any dtype. index: [sum of counts_to] int32, the rows for each rank, one rank after the other; not
  // defined: all rows in order. What goes to others is gathered at once, and leaves at start.
  RowExchange(Communicator& ranks, const Tensor& x, const Tensor& index, std::vector<int64_t> counts_to);
  // counts_from: rows that come from each rank. A rank's rows for itself go straight to their place.
  void start(const std::vector<int64_t>& counts_from);
  // Both at once.
  RowExchange(Communicator& ranks, const Tensor& x, const Tensor& index, std::vector<int64_t> counts_to,
              const std::vector<int64_t>& counts_from)
      : RowExchange(ranks, x, index, std::move(counts_to)) {
    start(counts_from);
  }
  // Without an index, and without a copy where runs are long: runs of x, the same number for each rank, one rank after
  // the other; and how long those are that come. Keeps x until wait.
  RowExchange(Communicator& ranks, const Tensor& x, const std::vector<Run>& runs_to,
              const std::vector<int64_t>& counts_from);

  // [sum of counts_from, C], by rank. Lets go of what was sent.
  Tensor wait();

 private:
  void copy(int64_t first, int64_t count, const Tensor& to) const;

  Communicator* ranks_ = nullptr;
  Tensor x_, index_;                // until start
  std::vector<int64_t> counts_to_;  // the same
  Tensor sent_, received_;
  Pending pending_;
};

}  // namespace octet
