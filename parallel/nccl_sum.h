// The ordered sum (parallel/ordered_sum.h) on a GPU, of pieces that came from other ranks and one of this rank.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace octet {

struct NcclSum {
  const std::byte* others = nullptr;  // the pieces of the other ranks in their order, one after the other
  const std::byte* own = nullptr;
  int own_rank = 0;
  int ranks = 0;
  int64_t elements = 0;      // of one piece; may be 0
  std::byte* to = nullptr;   // may be own
  bool is_bfloat16 = false;  // or float32
};
cudaError_t nccl_sum(const NcclSum& args, cudaStream_t stream);

}  // namespace octet
