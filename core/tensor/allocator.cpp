#include "core/tensor/allocator.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <numeric>
#include <vector>

#include "core/base/error.h"
#include "kernels/device_runtime.h"
#include "kernels/memory_holders.h"

namespace octet {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kHugePage = int64_t(2) << 20;
double mib(int64_t bytes) { return double(bytes) / double(1 << 20); }

class Pool {
 public:
  explicit Pool(Device device) : device_(device) {}

  void* allocate(int64_t bytes, MemoryCategory category) {
    const int64_t rounded = allocated_bytes(bytes);
    const std::lock_guard lock(mutex_);
    void* memory = device_.is_cpu() ? from_kept_or_system(rounded)
                                    : gpu::allocate(rounded, name_of(category).data(), default_stream(device_));
    if (memory == nullptr) refuse(bytes, category);
    if (!device_.is_cpu()) use_.held_bytes += rounded;
    const auto c = size_t(category);
    ++live_[c][rounded];
    use_.current_bytes[c] += rounded;
    total_ += rounded;
    use_.peak_bytes[c] = std::max(use_.peak_bytes[c], use_.current_bytes[c]);
    use_.peak_total_bytes = std::max(use_.peak_total_bytes, total_);
    return memory;
  }

  void release(void* memory, int64_t bytes, MemoryCategory category) {
    const int64_t rounded = allocated_bytes(bytes);
    const std::lock_guard lock(mutex_);
    if (device_.is_cpu()) {
      kept_[rounded].push_back(memory);
    } else {
      gpu::release(memory, default_stream(device_));
      use_.held_bytes -= rounded;
    }
    --live_[size_t(category)][rounded];
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
  std::string describe() {
    const std::lock_guard lock(mutex_);
    return holders();
  }

 private:
  void* from_kept_or_system(int64_t rounded) {
    auto& kept = kept_[rounded];
    if (!kept.empty()) {
      void* const memory = kept.back();
      kept.pop_back();
      return memory;
    }
    void* memory = from_system(rounded);
    if (memory == nullptr) {
      give_back_kept();
      memory = from_system(rounded);
    }
    if (memory != nullptr) use_.held_bytes += rounded;
    return memory;
  }
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

  // "weights 812.0 MiB (3 of 128.0 MiB, 12 of 32.0 MiB, ...)"
  std::string holder(size_t category) const {
    std::string text =
        fmt::format("{} {:.1f} MiB", name_of(MemoryCategory(category)), mib(use_.current_bytes[category]));
    int named = 0;
    const auto& sizes = live_[category];
    for (auto size = sizes.rbegin(); size != sizes.rend() && named < 2; ++size) {
      if (size->second == 0) continue;
      text += fmt::format("{}{} of {:.1f} MiB", named++ == 0 ? " (" : ", ", size->second, mib(size->first));
    }
    return named == 0 ? text : text + (named == 2 ? ", ...)" : ")");
  }
  // The largest first.
  std::string holders() const {
    std::array<size_t, kMemoryCategories> order{};
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(),
                     [this](size_t a, size_t b) { return use_.current_bytes[a] > use_.current_bytes[b]; });
    std::string text;
    for (const size_t c : order) text += (text.empty() ? "" : "; ") + holder(c);
    std::string where = fmt::format("{}, in use: {}", device_, text);
    if (!device_.is_cpu()) {
      const gpu::MemoryLevel level = gpu::memory_level(device_);
      where += fmt::format("; {:.1f} of {:.1f} MiB are free", mib(level.free_bytes), mib(level.total_bytes));
    }
    return where;
  }
  [[noreturn]] void refuse(int64_t bytes, MemoryCategory category) const {
    fail(ErrorKind::kMemory,
         {.what = fmt::format("out of memory: {:.1f} MiB more for {}", mib(bytes), name_of(category)),
          .where = holders(),
          .why = {},
          .fix = "lower train.micro_batch or data.seq_len, or set train.recompute: [block]; octet check predicts"});
  }

  const Device device_;
  std::mutex mutex_;
  std::map<int64_t, std::vector<void*>> kept_;                      // of the CPU, by size
  std::array<std::map<int64_t, int64_t>, kMemoryCategories> live_;  // blocks in use, by size
  MemoryUse use_;
  int64_t total_ = 0;
};

// Pools outlive every tensor, those in static objects too.
Pool& pool(Device device) {
  static Pool* const cpu = new Pool(Device{});
  if (device.is_cpu()) return *cpu;
  static auto* const gpus = new std::array<std::atomic<Pool*>, kMostGpus>{};
  static std::mutex making;
  std::atomic<Pool*>& gpu = (*gpus)[size_t(device.index)];
  if (gpu == nullptr) {
    const std::lock_guard lock(making);
    kernels::set_describe_holders([](Device of) { return pool(of).describe(); });
    if (gpu == nullptr) gpu = new Pool(device);
  }
  return *gpu;
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

void* allocate(int64_t bytes, MemoryCategory category, Device device) { return pool(device).allocate(bytes, category); }
void release(void* memory, int64_t bytes, MemoryCategory category, Device device) noexcept {
  pool(device).release(memory, bytes, category);
}
MemoryUse memory_use(Device device) { return pool(device).use(); }
void reset_peak_memory(Device device) { pool(device).reset_peak(); }
void release_kept_memory() { pool({}).give_back(); }

AllocateAs::AllocateAs(MemoryCategory category) : before_(category_now) { category_now = category; }
AllocateAs::~AllocateAs() { category_now = before_; }
MemoryCategory current_memory_category() { return category_now; }

}  // namespace octet
