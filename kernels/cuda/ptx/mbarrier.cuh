// Barriers of shared memory that count arrivals of threads and bytes of copies (PTX ISA, mbarrier), named barriers, and
// what a warpgroup does with its registers. An address is one of shared memory as dynamic_shared_address() counts, on a
// boundary of 8 bytes.
#pragma once

#include <cstdint>

#ifndef __CUDACC__
#include "kernels/cuda/emulation/block.h"
#endif

namespace octet::kernels::cuda::ptx {

// A barrier whose phases end after so many arrivals. One thread makes them and then calls fence_barriers; the others
// use them after a __syncthreads.
__device__ __forceinline__ void init_barrier(uint32_t barrier, uint32_t arrivals) {
#ifdef __CUDACC__
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
#else
  emulation::mbarrier_init(barrier, arrivals);
#endif
}
__device__ __forceinline__ void fence_barriers() {
#ifdef __CUDACC__
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
#else
  emulation::fence_proxy();
#endif
}

__device__ __forceinline__ void arrive(uint32_t barrier) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
#else
  emulation::mbarrier_arrive(barrier, 0);
#endif
}
// The phase also waits for so many bytes of load_tile.
__device__ __forceinline__ void arrive_and_expect(uint32_t barrier, uint32_t bytes) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#else
  emulation::mbarrier_arrive(barrier, bytes);
#endif
}
// Arrives when all copy_async of this thread so far have.
__device__ __forceinline__ void arrive_after_copies(uint32_t barrier) {
#ifdef __CUDACC__
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
#else
  emulation::mbarrier_arrive_after_copies(barrier);
#endif
}
// Waits for the end of the phase that has this parity: phases count from 0, and the one before the first has ended.
__device__ __forceinline__ void wait_for_phase(uint32_t barrier, uint32_t parity) {
#ifdef __CUDACC__
  asm volatile(
      "{\n.reg .pred done;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra WAIT;\n}\n" ::
          "r"(barrier),
      "r"(parity)
      : "memory");
#else
  emulation::mbarrier_wait(barrier, parity);
#endif
}

// A barrier of some warps of a block, with so many threads in all. number: 1 to 15, since 0 is that of __syncthreads.
__device__ __forceinline__ void sync_some(int number, int threads) {
#ifdef __CUDACC__
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
#else
  emulation::sync_some(number, threads);
#endif
}

// Gives back or takes registers: each thread of the warpgroup has so many from here on.
template <int count>
__device__ __forceinline__ void keep_registers() {
#ifdef __CUDACC__
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
#else
  emulation::set_registers(count);
#endif
}
template <int count>
__device__ __forceinline__ void take_registers() {
#ifdef __CUDACC__
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
#else
  emulation::set_registers(count);
#endif
}

}  // namespace octet::kernels::cuda::ptx
