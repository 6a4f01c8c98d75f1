#include "core/tensor/allocator.h"

#include <sys/mman.h>

#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "core/base/error.h"

namespace octet {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kHugePage = int64_t(2) << 20;

class Pool {
 public:
  void* allocate(int64_t bytes, MemoryCategory category) {
    const int64_t rounded = allocated_bytes(bytes);
    const std::lock_guard lock(mutex_);
    void* memory = nullptr;
    auto& kept = kept_[rounded];
    if (!kept.empty()) {
      memory = kept.back();
      kept.pop_back();
    } else {
      memory = from_system(rounded);
      if (memory == nullptr) {
        give_back_kept();
        memory = from_system(rounded);
      }
      if (memory == nullptr) refuse(bytes, category);
      use_.held_bytes += rounded;
    }
    const auto c = size_t(category);
    use_.current_bytes[c] += rounded;
    total_ += rounded;
    use_.peak_bytes[c] = std::max(use_.peak_bytes[c], use_.current_bytes[c]);
    use_.peak_total_bytes = std::max(use_.peak_total_bytes, total_);
    return memory;
  }

  void release(void* memory, int64_t bytes, MemoryCategory category) {
    const int64_t rounded = allocated_bytes(bytes);
    const std::lock_guard lock(mutex_);
    kept_[rounded].push_back(memory);
    use_.current_bytes[size_t(category)] -= rounded;
    total_ -= rounded;
  }

  MemoryUse use() {
    const std::lock_guard lock(mutex_);
    return use_;
  }
  void reset_peak() {
    const std::lock_guard lock(mutex_);
    use_.peak_bytes = use_.current_bytes;
    use_.peak_total_bytes = total_;
  }
  void give_back() {
    const std::lock_guard lock(mutex_);
    give_back_kept();
  }

 private:
  static void* from_system(int64_t rounded) {
    const int64_t alignment = rounded >= kHugePage ? kHugePage : kAlignment;
    void* memory = std::aligned_alloc(size_t(alignment), size_t((rounded + alignment - 1) / alignment * alignment));
    // Huge pages: a gigabyte of weights is 512 of them and not 262,144 page faults.
    if (memory != nullptr && rounded >= kHugePage) ::madvise(memory, size_t(rounded), MADV_HUGEPAGE);
    return memory;
  }
  void give_back_kept() {
    for (auto& [rounded, blocks] : kept_) {
      use_.held_bytes -= rounded * int64_t(blocks.size());
      for (void* block : blocks) std::free(block);
      blocks.clear();
    }
  }
  [[noreturn]] void refuse(int64_t bytes, MemoryCategory category) const {
    std::string holders;
    for (int c = 0; c < kMemoryCategories; ++c) {
      holders += fmt::format("{}{} {:.1f} MiB", c == 0 ? "" : ", ", name_of(MemoryCategory(c)),
                             double(use_.current_bytes[size_t(c)]) / double(1 << 20));
    }
    fail(ErrorKind::kMemory,
         {.what =
              fmt::format("out of memory: {:.1f} MiB more for {}", double(bytes) / double(1 << 20), name_of(category)),
          .where = "in use: " + holders,
          .why = {},
          .fix = "lower train.micro_batch or data.seq_len, or set train.recompute: [block]; octet check predicts"});
  }

  std::mutex mutex_;
  std::map<int64_t, std::vector<void*>> kept_;
  MemoryUse use_;
  int64_t total_ = 0;
};

Pool& pool() {
  static Pool* const instance = new Pool;  // outlives every tensor, those in static objects too
  return *instance;
}

thread_local MemoryCategory category_now = MemoryCategory::kActivations;

}  // namespace

std::string_view name_of(MemoryCategory category) {
  switch (category) {
    case MemoryCategory::kWeights:
      return "weights";
    case MemoryCategory::kGradients:
      return "gradients";
    case MemoryCategory::kOptimizer:
      return "optimizer";
    case MemoryCategory::kActivations:
      return "activations";
    case MemoryCategory::kWorkspace:
      return "workspace";
  }
  return "?";
}

void* allocate(int64_t bytes, MemoryCategory category) { return pool().allocate(bytes, category); }
void release(void* memory, int64_t bytes, MemoryCategory category) noexcept { pool().release(memory, bytes, category); }
MemoryUse memory_use() { return pool().use(); }
void reset_peak_memory() { pool().reset_peak(); }
void release_kept_memory() { pool().give_back(); }

AllocateAs::AllocateAs(MemoryCategory category) : before_(category_now) { category_now = category; }
AllocateAs::~AllocateAs() { category_now = before_; }
MemoryCategory current_memory_category() { return category_now; }

}  // namespace octet
