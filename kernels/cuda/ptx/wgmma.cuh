// Matrix products of a warpgroup, 128 threads, of operands in shared memory (PTX ISA, wgmma). All threads call in step.
#pragma once

#include <cstdint>

#ifndef __CUDACC__
#include "kernels/cuda/emulation/tensor_core.h"
#endif

namespace octet::kernels::cuda::ptx {

// What this thread has stored to shared memory, or seen there after a barrier, is seen by wgmma and by copies of tiles
// after this, and a barrier where another thread asks for them.
__device__ __forceinline__ void fence_proxy_async() {
#ifdef __CUDACC__
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  emulation::fence_proxy();
#endif
}
// Before the first product, and after the registers of one were touched.
__device__ __forceinline__ void wgmma_fence() {
#ifdef __CUDACC__
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
// Ends a batch of products; they run on.
__device__ __forceinline__ void wgmma_commit() {
#ifdef __CUDACC__
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  emulation::commit_reading(emulation::Reader::kProduct);
#endif
}
// All batches but the latest `most` are done: their registers may be read, and their operands overwritten.
template <int most = 0>
__device__ __forceinline__ void wgmma_wait() {
#ifdef __CUDACC__
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(most) : "memory");
#else
  emulation::wait_for_reading(emulation::Reader::kProduct, most);
#endif
}

#ifdef __CUDACC__
#define OCTET_WGMMA(shape, transposed)                                                                                 \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned." shape                         \
               " {"                                                                                                    \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "  \
               "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "  \
               "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "  \
               "%62, %63"                                                                                              \
               "}, %64, %65, p, 1, 1" transposed ";\n}\n"                                                              \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),       \
                 "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
                 "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]),            \
                 "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),            \
                 "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),            \
                 "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]),            \
                 "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]),            \
                 "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]),            \
                 "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])                          \
               : "l"(a), "l"(b), "r"(int(accumulate)))
#endif

// The 64 by 128 products of A [64, k] and B [128, k], rows along k, given by descriptors (kernels/cuda/gemm_tile.h): d
// = A B^T, or d + A B^T. Element i of d is that of wgmma_place. E4M3, k = 32.
__device__ __forceinline__ void wgmma_e4m3(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
#ifdef __CUDACC__
  OCTET_WGMMA("m64n128k32.f32.e4m3.e4m3", "");
#else
  emulation::multiply<emulation::E4m3>(d, a, b, accumulate);
#endif
}

// bfloat16, k = 16.
__device__ __forceinline__ void wgmma_bf16(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
#ifdef __CUDACC__
  OCTET_WGMMA("m64n128k16.f32.bf16.bf16", ", 0, 0");
#else
  emulation::multiply<emulation::Bf16>(d, a, b, accumulate);
#endif
}

// The same with B [k, 128], rows along the columns of the result.
__device__ __forceinline__ void wgmma_bf16_transposed(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
#ifdef __CUDACC__
  OCTET_WGMMA("m64n128k16.f32.bf16.bf16", ", 0, 1");
#else
  emulation::multiply<emulation::Bf16, false, true>(d, a, b, accumulate);
#endif
}
// The same with A [k, 64] too, rows along the rows of the result.
__device__ __forceinline__ void wgmma_bf16_both_transposed(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
#ifdef __CUDACC__
  OCTET_WGMMA("m64n128k16.f32.bf16.bf16", ", 1, 1");
#else
  emulation::multiply<emulation::Bf16, true, true>(d, a, b, accumulate);
#endif
}

#undef OCTET_WGMMA

}  // namespace octet::kernels::cuda::ptx
