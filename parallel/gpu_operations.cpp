#include "parallel/gpu_operations.h"

#include <utility>

#include "core/base/error.h"

namespace octet {

void GpuOperations::add(std::string what, std::function<bool()> has_begun, std::function<bool()> is_done) {
  while (!operations_.empty() && operations_.front().is_done()) operations_.pop_front();
  operations_.push_back({.what = std::move(what), .has_begun = std::move(has_begun), .is_done = std::move(is_done)});
}

void GpuOperations::look(double now) {
  while (!operations_.empty() && operations_.front().is_done()) operations_.pop_front();
  if (operations_.empty()) return;
  Operation& first = operations_.front();
  if (first.seen_at < 0 && first.has_begun()) first.seen_at = now;
  const double waited = first.seen_at < 0 ? 0 : now - first.seen_at;
  if (waited < timeout_s_) return;
  fail(
      ErrorKind::kHang,
      {.what = fmt::format("this rank's GPU has been in {} for {:.1f} s", first.what, waited),
       .where = {},
       .why = "the GPU of another rank does not come to it: it hangs in a kernel, has failed, or works for longer than "
              "parallel.timeout_s",
       .fix = "look at the logs of the other ranks and, with nvidia-smi, at their GPUs; raise parallel.timeout_s where "
              "they only work for long"});
}

}  // namespace octet
