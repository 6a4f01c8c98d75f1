// Kernels with tensors of their own, timed against a copy of as many bytes, and their answers compared with those of a
// reference: of a GPU the CPU, of the CPU its plain form.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/tensor/tensor.h"
#include "kernels/kernel_profile.h"

namespace octet {

struct CaseSizes {
  int64_t tokens, hidden, experts, top_k, expert_hidden;
  int64_t vocab = 0;  // 0: of no meaning
};
struct CaseOptions {
  DeviceType device = DeviceType::kCpu;
  CaseSizes sizes;
  int64_t repeats = 9;
};
// args: device=cpu|cuda, a number for each of the sizes that mean something, repeats=N. benchmark: its name, and fix a
// command line that is right, for messages.
CaseOptions parse_case_options(const std::vector<std::string>& args, const std::string& benchmark,
                               const std::string& fix, const CaseSizes& on_cpu, const CaseSizes& on_gpu);

class KernelCases {
 public:
  struct Case {
    kernels::KernelCost cost;
    std::function<void()> run;
    std::vector<Tensor> results;
  };
  explicit KernelCases(Device device) : device_(device), stream_(default_stream(device)) {}

  Device device() const { return device_; }
  Tensor made(Shape shape, DType dtype);                       // zeros
  Tensor normal(Shape shape, DType dtype, const char* name);   // numbers of unit size
  Tensor below(Shape shape, int64_t limit, const char* name);  // int32 in [0, limit)
  Tensor there(const Tensor& host);
  // Views own nothing: what a case reads is kept here.
  Tensor keep(Tensor x) { return kept_.emplace_back(std::move(x)); }

  // A kernel as it is called in a step; it runs once now, for those after it. Under a name of its own, where two cases
  // have one kernel.
  template <class Args>
  void add(void (*kernel)(const Args&, Stream&), Args args, std::vector<Tensor> results, const char* name = nullptr) {
    kernels::KernelCost cost = args.cost();
    if (name != nullptr) cost.name = name;
    cases_.push_back({cost, [this, kernel, args] { kernel(args, stream_); }, std::move(results)});
    kernel(args, stream_);
  }
  const std::vector<Case>& all() const { return cases_; }

 private:
  Device device_;
  Stream& stream_;
  AllocateAs as_{MemoryCategory::kWorkspace};
  std::vector<Tensor> kept_;
  std::vector<Case> cases_;
};

// Prints a line for each case of timed; compared builds the same cases on a small problem. Returns 0, or 1 where an
// answer is wrong.
int time_cases(Device device, int64_t repeats, const std::function<void(KernelCases&)>& compared,
               const std::function<void(KernelCases&)>& timed);

}  // namespace octet
