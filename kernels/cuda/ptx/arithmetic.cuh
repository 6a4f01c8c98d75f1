// Arithmetic of one instruction, and what it computes (PTX ISA, ex2, rcp, mul, min, max).
#pragma once

#include <cstdint>

#ifndef __CUDACC__
#include <bit>
#include <cmath>

#include "kernels/cuda/ptx/convert.cuh"
#endif

namespace octet::kernels::cuda::ptx {

// ex2.approx.ftz.f32: 2^x to about 2^-22 of it; what is subnormal is zero. The twin is exact but for a rounding.
__device__ __forceinline__ float exp2_of(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
#endif
}

// rcp.approx.ftz.f32: 1 / x to 2^-23 of it, of x from 2^-126 to 2^126. The twin is the nearest number.
__device__ __forceinline__ float reciprocal_estimate(float x) {
#ifdef __CUDACC__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

// mul.rn.bf16x2: two products of bfloat16, each rounded to nearest; every NaN is 0x7fff.
__device__ __forceinline__ uint32_t multiply_pairs(uint32_t a, uint32_t b) {
#ifdef __CUDACC__
  uint32_t pair;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
  return pair;
#else
  uint32_t pair = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const float product = std::bit_cast<float>(a >> shift << 16) * std::bit_cast<float>(b >> shift << 16);
    pair |= uint32_t(bf16_from_float(product)) << shift;
  }
  return pair;
#endif
}

#ifndef __CUDACC__
// Of each of two bfloat16 numbers choose(magnitude of a, of b), under the sign of their product.
template <class Choose>
uint32_t choose_magnitudes(uint32_t a, uint32_t b, Choose&& choose) {
  uint32_t pair = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const uint32_t x = a >> shift & 0x7fffu, y = b >> shift & 0x7fffu;
    pair |= (choose(x, y) | ((a ^ b) >> shift & 0x8000u)) << shift;
  }
  return pair;
}
#endif
// max.NaN.xorsign.abs.bf16x2: of two pairs of bfloat16 the larger magnitudes, NaN where one is; their signs mean
// nothing.
__device__ __forceinline__ uint32_t larger_magnitudes(uint32_t a, uint32_t b) {
#ifdef __CUDACC__
  uint32_t pair;
  asm("max.NaN.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
  return pair;
#else
  return choose_magnitudes(a, b, [](uint32_t x, uint32_t y) {
    return x > 0x7f80u || y > 0x7f80u ? 0x7fffu : x < y ? y : x;
  });
#endif
}
// min.xorsign.abs.bf16x2: the smaller, a number where one is.
__device__ __forceinline__ uint32_t smaller_magnitudes(uint32_t a, uint32_t b) {
#ifdef __CUDACC__
  uint32_t pair;
  asm("min.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
  return pair;
#else
  return choose_magnitudes(a, b, [](uint32_t x, uint32_t y) { return x < y ? x : y; });
#endif
}

}  // namespace octet::kernels::cuda::ptx
