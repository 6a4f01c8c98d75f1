// Everything a CUDA kernel of Octet uses. A .cu file is written once and compiled by nvcc for sm_90a, or, with
// OCTET_EMULATE_CUDA, by g++ against kernels/cuda/emulation/, so that tests run the same text without a GPU
// (docs/cuda_emulation.md). Contraction of a*b+c is off in both: fmaf is written where one rounding is meant, and the
// elementwise functions here give the bits of kernels/cpu/simd.inc.
//
// Kernels start through launch(); shared memory is Shared<T>, from OCTET_SHARED(T, name, count) or dynamic_shared;
// whole warps take part in shuffles.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/error.h"
#include "core/base/stream.h"
#include "core/base/view.h"
#include "kernels/cuda/workspace.h"
#include "kernels/device_runtime.h"

#ifdef __CUDACC__
#include "kernels/cuda/hardware.cuh"
#else
#include "kernels/cuda/emulation/device.h"
#endif
#include "kernels/cuda/ptx/arithmetic.cuh"
#include "kernels/cuda/ptx/convert.cuh"

namespace octet::kernels::cuda {

inline constexpr int kWarp = 32;

template <class Integer>
__host__ __device__ constexpr Integer ceil_div(Integer a, Integer b) {
  return (a + b - 1) / b;
}
// A grid's first axis from a count of blocks.
inline dim3 blocks(int64_t x, int64_t y = 1, int64_t z = 1) {
  dim3 grid;
  grid.x = unsigned(x), grid.y = unsigned(y), grid.z = unsigned(z);
  return grid;
}

// Whether `value` is in [0, limit); otherwise the first that asks leaves it for the host (kernels/device_runtime.h).
__device__ __forceinline__ bool is_in_range(int64_t value, int64_t limit, gpu::Fault fault, gpu::FaultRecord* record) {
  if (0 <= value && value < limit) return true;
  if (atomic_replace(&record->fault, 0, int64_t(fault))) {
    record->value = value;
    record->limit = limit;
  }
  return false;
}

inline constexpr float kInfinity = __builtin_huge_valf();

// bfloat16 numbers, rounded as the constructor of octet::bfloat16 rounds.
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bfloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
template <class Scalar>
__device__ __forceinline__ Scalar from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bfloat16 from_float<bfloat16>(float x) {
  const uint32_t u = bit_cast<uint32_t>(x);
  bfloat16 y;
  // The conversion of the hardware gives every NaN the same bits.
  y.bits = uint16_t(x != x ? (u >> 16) | 0x40u : ptx::bf16_from_float(x));
  return y;
}

// Eight numbers: 16 bytes of bfloat16, 32 of float32, what a thread moves at a time.
inline constexpr int kVector = 8;
struct Floats8 {
  float v[kVector];
};
// The first n of them, zeros behind; whole words where they lie on a boundary of 16 bytes.
__device__ __forceinline__ Floats8 load8(const float* from, int64_t n) {
  Floats8 x;
  if (n >= kVector && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    for (int half = 0; half < 2; ++half) {
      const uint4 words = load_words<uint4>(from + 4 * half);
      x.v[4 * half] = bit_cast<float>(words.x), x.v[4 * half + 1] = bit_cast<float>(words.y);
      x.v[4 * half + 2] = bit_cast<float>(words.z), x.v[4 * half + 3] = bit_cast<float>(words.w);
    }
  } else {
    for (int i = 0; i < kVector; ++i) x.v[i] = i < n ? from[i] : 0.0f;
  }
  return x;
}
__device__ __forceinline__ Floats8 load8(const bfloat16* from, int64_t n) {
  Floats8 x;
  if (n >= kVector && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    const uint4 words = load_words<uint4>(from);
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
    for (int i = 0; i < 4; ++i) {
      x.v[2 * i] = bit_cast<float>(pairs[i] << 16);
      x.v[2 * i + 1] = bit_cast<float>(pairs[i] & 0xffff0000u);
    }
  } else {
    for (int i = 0; i < kVector; ++i) x.v[i] = i < n ? to_float(from[i]) : 0.0f;
  }
  return x;
}
__device__ __forceinline__ void store8(float* to, const Floats8& x, int64_t n) {
  if (n >= kVector && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    for (int half = 0; half < 2; ++half) {
      uint4 words;
      words.x = bit_cast<uint32_t>(x.v[4 * half]), words.y = bit_cast<uint32_t>(x.v[4 * half + 1]);
      words.z = bit_cast<uint32_t>(x.v[4 * half + 2]), words.w = bit_cast<uint32_t>(x.v[4 * half + 3]);
      store_words(to + 4 * half, words);
    }
  } else {
    for (int i = 0; i < kVector; ++i) {
      if (i < n) to[i] = x.v[i];
    }
  }
}
__device__ __forceinline__ void store8(bfloat16* to, const Floats8& x, int64_t n) {
  if (n >= kVector && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    uint32_t pairs[4];
    for (int i = 0; i < 4; ++i) {
      pairs[i] = uint32_t(from_float<bfloat16>(x.v[2 * i]).bits) | uint32_t(from_float<bfloat16>(x.v[2 * i + 1]).bits)
                                                                       << 16;
    }
    uint4 words;
    words.x = pairs[0], words.y = pairs[1], words.z = pairs[2], words.w = pairs[3];
    store_words(to, words);
  } else {
    for (int i = 0; i < kVector; ++i) {
      if (i < n) to[i] = from_float<bfloat16>(x.v[i]);
    }
  }
}

// The functions of kernels/cpu/simd.inc, where they are derived, with their bits.
// exp_of, of x from -87 to 88.
__device__ __forceinline__ float exp_within(float x) {
  const float magic = 0x1.8p23f;
  const float shifted = fmaf(x, 0x1.715476p0f, magic);
  const float n = shifted - magic;
  float r = fmaf(n, -0x1.62e400p-1f, x);
  r = fmaf(n, -0x1.7f7d1cp-20f, r);
  const float r2 = r * r;
  float s = fmaf(r, 1.0f / 5040.0f, 1.0f / 720.0f);
  s = fmaf(s, r2, fmaf(r, 1.0f / 120.0f, 1.0f / 24.0f));
  s = fmaf(s, r2, fmaf(r, 1.0f / 6.0f, 0.5f));
  const float p = 1.0f + fmaf(s, r2, r);
  return bit_cast<float>(bit_cast<uint32_t>(p) + (bit_cast<uint32_t>(shifted) << 23));
}
__device__ __forceinline__ float exp_of(float x) {
  float y = exp_within(x);
  y = x < -0x1.5d589ep6f ? 0.0f : y;
  return x < 0x1.62e430p6f ? y : x + kInfinity;
}
__device__ __forceinline__ float log_of(float x) {
  const bool subnormal = x < 0x1p-126f;
  const uint32_t half_root = 0x3f3504f3u;
  const uint32_t shifted = bit_cast<uint32_t>(subnormal ? x * 0x1p23f : x) + (0x3f800000u - half_root);
  const float f = bit_cast<float>((shifted & 0x7fffffu) + half_root) - 1.0f;
  const float n = float(int32_t(shifted >> 23) - (subnormal ? 127 + 23 : 127));
  const float s = f / (2.0f + f);
  const float z = s * s;
  float r = fmaf(z, 2.0f / 9.0f, 2.0f / 7.0f);
  r = fmaf(r, z, 2.0f / 5.0f);
  r = fmaf(r, z, 2.0f / 3.0f) * z;
  const float low = s * (f - r) - n * 0x1.7f7d1cp-20f;
  float y = fmaf(n, 0x1.62e400p-1f, f - low);
  y = fabsf(x) < 0x1p-149f ? -kInfinity : y;
  y = x < 0.0f ? bit_cast<float>(0x7fc00000u) : y;
  return x < kInfinity ? y : x;
}
__device__ __forceinline__ float sigmoid_of(float x) { return 1.0f / (1.0f + exp_of(-x)); }
// sigmoid_of, of x from -87 to 87. The divisor is then from 1 to 2^126, where one step of Newton's method after the
// hardware's estimate gives the nearest number, as the division of nvcc does before it looks for what is not normal.
__device__ __forceinline__ float sigmoid_within(float x) {
  const float divisor = 1.0f + exp_within(-x), estimate = ptx::reciprocal_estimate(divisor);
  return fmaf(estimate, fmaf(-divisor, estimate, 1.0f), estimate);
}

// Over the lanes of a warp, or groups of `width` of them, in a fixed tree; all get the result.
template <int width = kWarp, class T>
__device__ __forceinline__ T warp_sum(T x) {
  for (int step = width / 2; step > 0; step /= 2) x = x + shuffle_xor(x, step);
  return x;
}
template <int width = kWarp, class T>
__device__ __forceinline__ T warp_max(T x) {
  for (int step = width / 2; step > 0; step /= 2) {
    const T other = shuffle_xor(x, step);
    x = x < other ? other : x;
  }
  return x;
}

// Over all threads of a block, which all call it and get the result: the tree of each warp, then the warps in order.
// Two calls may follow each other with no barrier in between.
template <int kThreads, class T, class Combine>
__device__ __forceinline__ T block_combine(T of_warp, T start, Combine combine) {
  OCTET_SHARED(T, of_warps, kThreads / kWarp);
  __syncthreads();  // the last call's results have been read
  if (threadIdx.x % kWarp == 0) of_warps[int(threadIdx.x) / kWarp] = of_warp;
  __syncthreads();
  T all = start;
  for (int w = 0; w < kThreads / kWarp; ++w) all = combine(all, T(of_warps[w]));
  return all;
}
template <int kThreads, class T>
__device__ __forceinline__ T block_sum(T x) {
  return block_combine<kThreads>(warp_sum(x), T(0), [](T a, T b) { return a + b; });
}
template <int kThreads, class T>
__device__ __forceinline__ T block_max(T x, T least) {
  return block_combine<kThreads>(warp_max(x), least, [](T a, T b) { return a < b ? b : a; });
}

}  // namespace octet::kernels::cuda
