// Copies from global to shared memory that run while the thread goes on (PTX ISA, cp.async). Both places lie on a
// boundary of 16 bytes. What a thread copied is there after its wait, and for other threads after a barrier too.
#pragma once

#include <cstdint>

#ifndef __CUDACC__
#include "kernels/cuda/emulation/block.h"
#endif

namespace octet::kernels::cuda::ptx {

// 16 bytes to an address of shared memory as dynamic_shared_address() counts: those of `from`, which is read only if
// is_there, or zeros.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool is_there) {
#ifdef __CUDACC__
  asm volatile("{\n.reg .u64 g;\ncvta.to.global.u64 g, %1;\ncp.async.cg.shared.global [%0], [g], 16, %2;\n}\n"
               :
               : "r"(to), "l"(from), "r"(is_there ? 16 : 0)
               : "memory");
#else
  alignas(16) static constexpr std::byte kZeros[16] = {};
  emulation::copy_async(to, is_there ? static_cast<const std::byte*>(from) : kZeros, 16);
#endif
}
// The same for 4 bytes, on boundaries of 4.
__device__ __forceinline__ void copy_async_word(uint32_t to, const void* from, bool is_there) {
#ifdef __CUDACC__
  asm volatile("{\n.reg .u64 g;\ncvta.to.global.u64 g, %1;\ncp.async.ca.shared.global [%0], [g], 4, %2;\n}\n"
               :
               : "r"(to), "l"(from), "r"(is_there ? 4 : 0)
               : "memory");
#else
  alignas(4) static constexpr std::byte kZeros[4] = {};
  emulation::copy_async(to, is_there ? static_cast<const std::byte*>(from) : kZeros, 4);
#endif
}
// Ends a batch of copies.
__device__ __forceinline__ void commit_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulation::commit_copies();
#endif
}
// All batches but the latest `most` have arrived.
template <int most>
__device__ __forceinline__ void wait_for_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(most) : "memory");
#else
  emulation::wait_for_copies(most);
#endif
}

}  // namespace octet::kernels::cuda::ptx
