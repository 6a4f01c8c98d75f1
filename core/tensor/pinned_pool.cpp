#include "core/tensor/pinned_pool.h"

#include <utility>

#include "core/tensor/allocator.h"

namespace octet {

PinnedPool::Block PinnedPool::take(int64_t bytes) {
  const std::lock_guard lock(mutex_);
  const int64_t rounded = allocated_bytes(bytes);
  for (size_t i = 0; i < kept_.size(); ++i) {
    if (kept_[i].bytes < bytes || kept_[i].bytes > 4 * rounded || !kept_[i].free_at.is_done()) continue;
    Block block = std::move(kept_[i]);
    kept_.erase(kept_.begin() + std::ptrdiff_t(i));
    return block;
  }
  Block block;
  block.data = gpu::allocate_pinned(rounded);
  block.bytes = rounded;
  return block;
}

void PinnedPool::give_back(Block block) {
  if (block.data == nullptr) return;
  const std::lock_guard lock(mutex_);
  kept_.push_back(std::move(block));
}

PinnedPool& PinnedPool::instance() {
  static auto* const pool = new PinnedPool;
  return *pool;
}

}  // namespace octet
