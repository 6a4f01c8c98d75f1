// Pinned host memory, which a GPU reads and writes by itself. It is slow to make, so what a copy has let go of is kept
// for the next.
#pragma once

#include <mutex>
#include <vector>

#include "kernels/device_runtime.h"

namespace octet {

class PinnedPool {
 public:
  struct Block {
    std::byte* data = nullptr;
    int64_t bytes = 0;
    gpu::Event free_at;  // when the copy that used it is done
  };

  // At least so many bytes.
  Block take(int64_t bytes);
  // Not handed out again before its free_at.
  void give_back(Block block);

  static PinnedPool& instance();  // of the process; outlives every static object

 private:
  std::mutex mutex_;
  std::vector<Block> kept_;
};

}  // namespace octet
