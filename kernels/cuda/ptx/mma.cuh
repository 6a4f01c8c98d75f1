// Matrix products of a warp, and how their operands come from shared memory into its registers (PTX ISA, mma.sync,
// ldmatrix). All 32 lanes call in step. Lane l has row l / 4 of a piece of 8 by 8 and its elements 2 (l % 4) and the
// next: two bfloat16 in a register, the first in its low half.
#pragma once

#include <cstdint>

#ifndef __CUDACC__
#include "kernels/cuda/emulation/tensor_core.h"
#endif

namespace octet::kernels::cuda::ptx {

// ldmatrix.x4: four pieces of 8 rows of 16 bytes; lane l gives the place of row l % 8 of piece l / 8, on a boundary of
// 16 bytes, an address of shared memory as dynamic_shared_address() counts.
__device__ __forceinline__ void load_pieces(uint32_t (&pieces)[4], uint32_t address) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(pieces[0]), "=r"(pieces[1]), "=r"(pieces[2]), "=r"(pieces[3])
               : "r"(address)
               : "memory");
#else
  emulation::load_pieces<false>(pieces, address);
#endif
}
// The same with rows and columns of each piece exchanged.
__device__ __forceinline__ void load_pieces_transposed(uint32_t (&pieces)[4], uint32_t address) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(pieces[0]), "=r"(pieces[1]), "=r"(pieces[2]), "=r"(pieces[3])
               : "r"(address)
               : "memory");
#else
  emulation::load_pieces<true>(pieces, address);
#endif
}

// d += A B^T, A 16 by 16 and B 8 by 16, rows along k: m16n8k16 of bfloat16. The pieces of A are its rows 0-7 and 8-15
// of k 0-7, then of k 8-15; those of B are k 0-7 and 8-15. d: rows l / 4 and l / 4 + 8, two columns each.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  emulation::multiply_pieces(d, a, b0, b1);
#endif
}

}  // namespace octet::kernels::cuda::ptx
