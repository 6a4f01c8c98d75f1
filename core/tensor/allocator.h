// Memory for tensors, on each device by itself. On the CPU freed blocks are kept by size class and handed out again, so
// that a training step in its steady state asks the system for nothing; a GPU's blocks come from its runtime's pool, in
// the order of the device's default stream, which does the same (kernels/device_runtime.h). Use is counted by category,
// and the peak of each is kept.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/base/device.h"

namespace octet {

enum class MemoryCategory { kWeights, kGradients, kOptimizer, kActivations, kWorkspace };
inline constexpr int kMemoryCategories = 5;
std::string_view name_of(MemoryCategory category);

struct MemoryUse {
  std::array<int64_t, kMemoryCategories> current_bytes{};
  std::array<int64_t, kMemoryCategories> peak_bytes{};  // of each category by itself
  int64_t peak_total_bytes = 0;                         // of the sum
  int64_t held_bytes = 0;                               // from the system, in use or kept; of a GPU, in use
};

// What a tensor of this many bytes takes: sizes are rounded up to four steps per power of two, so that at most a
// quarter is wasted and blocks find each other again.
constexpr int64_t allocated_bytes(int64_t bytes) {
  constexpr int64_t kLeast = 64;
  if (bytes <= kLeast) return kLeast;
  const int64_t step = std::max<int64_t>(kLeast, int64_t(std::bit_floor(uint64_t(bytes))) / 4);
  return (bytes + step - 1) / step * step;
}

// 64-byte aligned memory, not initialised. bytes may be 0: the result is then a valid address too. Throws
// Error(kMemory) that names the size, the category and what holds the most: each category, with its largest blocks.
void* allocate(int64_t bytes, MemoryCategory category, Device device = {});
void release(void* memory, int64_t bytes, MemoryCategory category, Device device = {}) noexcept;

MemoryUse memory_use(Device device = {});
void reset_peak_memory(Device device = {});
// Gives kept blocks of the CPU back to the system.
void release_kept_memory();

// What an op allocates without saying is kActivations while this object lives on this thread, or the category given.
class AllocateAs {
 public:
  explicit AllocateAs(MemoryCategory category);
  ~AllocateAs();
  AllocateAs(const AllocateAs&) = delete;
  AllocateAs& operator=(const AllocateAs&) = delete;

 private:
  MemoryCategory before_;
};
MemoryCategory current_memory_category();

}  // namespace octet
