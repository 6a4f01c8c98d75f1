// Fp8Counts where kernels add to them: in the memory of their device.
#pragma once

#include "core/ops/numerics.h"
#include "core/tensor/transfer.h"

namespace octet {

class Fp8Tally {
 public:
  explicit Fp8Tally(Device device) : numbers_(zeros({kNumbers}, DType::kInt64, MemoryCategory::kWorkspace, device)) {}

  // For Numerics::health and kernels; the host does not look at it.
  Fp8Counts* counts() const { return static_cast<Fp8Counts*>(numbers_.view().raw()); }
  // The counts so far, from a GPU with a wait; then they are 0.
  Fp8Counts take() {
    const Tensor host = on_host(numbers_);
    const Fp8Counts counts = *static_cast<const Fp8Counts*>(host.view().raw());
    fill_zero(numbers_);
    return counts;
  }

 private:
  static constexpr int64_t kNumbers = sizeof(Fp8Counts) / sizeof(int64_t);
  Tensor numbers_;
};

}  // namespace octet
