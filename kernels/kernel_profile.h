// Where the time of a step goes: the calls of each kernel, how long they ran and what they had to do at least. Off but
// for the life of a KernelProfile; dispatch.h then times every call, on a GPU by the GPU's clock and without a wait.
#pragma once

#include <string>
#include <vector>

#include "core/base/clock.h"
#include "core/base/view.h"
#include "kernels/device_runtime.h"

namespace octet::kernels {

// What one call has to do, whatever its implementation: each tensor read or written once, each product formed once.
struct KernelCost {
  const char* name = "";
  double bytes = 0;
  double float_flops = 0;  // multiply-adds of float32, two operations each
  double pair_flops = 0;   // of bfloat16 or FP8 operands, which some processors multiply in pairs (kernels/peak.h)
};
// Of the views that are defined.
inline double bytes_of(const auto&... views) {
  const auto bytes = [](const ConstView& view) {
    return view.is_defined() ? double(view.num_elements() * size_of(view.dtype())) : 0.0;
  };
  return (bytes(views) + ...);
}

class KernelProfile {
 public:
  explicit KernelProfile(Clock& clock);
  ~KernelProfile();
  KernelProfile(const KernelProfile&) = delete;
  KernelProfile& operator=(const KernelProfile&) = delete;

  struct Row {
    KernelCost cost;  // of all calls
    int64_t calls = 0;
    double seconds = 0;
  };
  // By name, longest first. The host waits for what a GPU has not done.
  std::vector<Row> rows() const;
  void clear();

  // The one that runs, or null. Kernels are called from one thread.
  static KernelProfile* current();
  void add(const KernelCost& cost, double seconds);
  void add(const KernelCost& cost, gpu::Stopwatch stopwatch);
  Clock& clock() const { return clock_; }

 private:
  struct Running {
    KernelCost cost;
    gpu::Stopwatch stopwatch;
  };
  static void add_to(std::vector<Row>& rows, const KernelCost& cost, double seconds);

  Clock& clock_;
  std::vector<Row> rows_;
  std::vector<Running> running_;  // on a GPU
};

}  // namespace octet::kernels
