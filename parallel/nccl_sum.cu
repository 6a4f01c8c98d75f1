#include <cuda_bf16.h>

#include <algorithm>

#include "parallel/nccl_sum.h"

namespace octet {
namespace {

constexpr int kThreads = 256;

template <class Stored>
__global__ void __launch_bounds__(kThreads) nccl_sum_kernel(NcclSum args) {
  const Stored* others = reinterpret_cast<const Stored*>(args.others);
  const Stored* own = reinterpret_cast<const Stored*>(args.own);
  Stored* to = reinterpret_cast<Stored*>(args.to);
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < args.elements; i += step) {
    float sum = 0.0f;
    for (int r = 0; r < args.ranks; ++r) {
      const int64_t slot = r < args.own_rank ? r : r - 1;
      const float x = float(r == args.own_rank ? own[i] : others[slot * args.elements + i]);
      sum = r == 0 ? x : sum + x;
    }
    to[i] = Stored(sum);
  }
}

}  // namespace

cudaError_t nccl_sum(const NcclSum& args, cudaStream_t stream) {
  if (args.elements == 0) return cudaSuccess;  // a grid of zero blocks is a launch error
  constexpr int64_t kMostBlocks = 4096;        // beyond them each thread takes several elements
  const int64_t blocks = std::min((args.elements + kThreads - 1) / kThreads, kMostBlocks);
  if (args.is_bfloat16) {
    nccl_sum_kernel<__nv_bfloat16><<<unsigned(blocks), kThreads, 0, stream>>>(args);
  } else {
    nccl_sum_kernel<float><<<unsigned(blocks), kThreads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

}  // namespace octet
