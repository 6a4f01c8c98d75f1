// The operations between ranks that a GPU was given and has not finished. A GPU that waits in one for another GPU says
// nothing: here is the deadline of that wait.
#pragma once

#include <deque>
#include <functional>
#include <string>

namespace octet {

class GpuOperations {
 public:
  // An operation may take timeout_s from when it was first seen to have begun.
  explicit GpuOperations(double timeout_s) : timeout_s_(timeout_s) {}

  // In the order in which they run. what: for the message, "all_reduce of group world, which all ranks have entered".
  void add(std::string what, std::function<bool()> has_begun, std::function<bool()> is_done);
  // At a time `now`, seconds that never go back. Throws Error(kHang) where one takes longer.
  void look(double now);
  int64_t under_way() const { return int64_t(operations_.size()); }

 private:
  struct Operation {
    std::string what;
    std::function<bool()> has_begun, is_done;
    double seen_at = -1;  // to have begun; -1: it has not
  };

  double timeout_s_;
  std::deque<Operation> operations_;
};

}  // namespace octet
