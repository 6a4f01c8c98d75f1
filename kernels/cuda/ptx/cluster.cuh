// Blocks that run together, a cluster, and reach each other's shared memory (PTX ISA, mapa, barrier.cluster). A place
// in another block is that of one's own, in a block of so many of the cluster.
#pragma once

#include <cstdint>

#ifndef __CUDACC__
#include "kernels/cuda/emulation/block.h"
#endif

namespace octet::kernels::cuda::ptx {

// Which block of its cluster this is.
__device__ __forceinline__ int block_in_cluster() {
#ifdef __CUDACC__
  uint32_t block;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(block));
  return int(block);
#else
  return emulation::block_in_cluster();
#endif
}

// A barrier of all threads of all blocks of the cluster. No block reaches another's memory before it, nor may a block
// end while another still does.
__device__ __forceinline__ void sync_cluster() {
#ifdef __CUDACC__
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#else
  emulation::sync_cluster();
#endif
}

// Arrives at the mbarrier of a block of the cluster, its own too. It tells of reads that are over, such as those of
// products after their wait, not of what this thread wrote: ordering writes for the whole cluster costs a fence of the
// GPU each time (mbarrier.arrive.release.cluster).
__device__ __forceinline__ void arrive_at(int block, uint32_t barrier) {
#ifdef __CUDACC__
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(barrier),
      "r"(block)
      : "memory");
#else
  emulation::mbarrier_arrive_at(block, barrier);
#endif
}

}  // namespace octet::kernels::cuda::ptx
