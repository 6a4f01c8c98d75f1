// Conversions of one instruction, and what they compute (PTX ISA, cvt).
#pragma once

#include <cstdint>

#ifndef __CUDACC__
#include "core/base/dtype.h"
#include "core/base/fp8.h"
#endif

namespace octet::kernels::cuda::ptx {

// cvt.rn.bf16.f32: nearest, ties to even; every NaN is 0x7fff.
__device__ __forceinline__ uint16_t bf16_from_float(float x) {
#ifdef __CUDACC__
  uint16_t y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
#else
  return x != x ? uint16_t(0x7fff) : bfloat16(x).bits;
#endif
}

// cvt.rn.bf16x2.f32: two of them, low in bits 0 to 15.
__device__ __forceinline__ uint32_t bf16x2_from_floats(float low, float high) {
#ifdef __CUDACC__
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return uint32_t(bf16_from_float(low)) | uint32_t(bf16_from_float(high)) << 16;
#endif
}

// cvt.rn.satfinite.e4m3x2.f32: codes of low and high, nearest, ties to even, at most 448; every NaN is 0x7f.
__device__ __forceinline__ uint16_t e4m3x2_from_floats(float low, float high) {
#ifdef __CUDACC__
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
#else
  return uint16_t(encode_e4m3(low).bits | encode_e4m3(high).bits << 8);
#endif
}

// The number of a code, exact. Every NaN is 0x7fc00000.
__device__ __forceinline__ float float_from_e4m3(uint32_t code) {
#ifdef __CUDACC__
  // The bits of an E4M3 number, shifted to where an f16 has them, are 2^-8 of it, subnormals too.
  const uint32_t half = (code & 0x80u) << 8 | (code & 0x7fu) << 7;
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(uint16_t(half)));
  return (code & 0x7fu) == 0x7fu ? __int_as_float(0x7fc00000) : x * 256.0f;
#else
  return decode(float8_e4m3{uint8_t(code)});
#endif
}

}  // namespace octet::kernels::cuda::ptx
