// A matrix product with one accumulator for each sum, in the order of the CPU's contract, so with its bits: the form of
// float32, and of the emulations of FP8 that no tensor core has. A block of 256 threads has a tile of 64 by 64 sums, 4
// by 4 for each thread, and 16 of k at a time in shared memory.
#pragma once

#include "kernels/cuda/gemm_grid.cuh"

namespace octet::kernels::cuda {

inline constexpr int kPlainTile = 64, kPlainDepth = 16, kPlainSide = 4;

// What is summed for one element of the result, in blocks of kBlock along k, and with which scale.
struct FloatMath {  // kernels/gemm.h
  static constexpr int kBlock = 256;
  static constexpr bool kIsScaled = false, kPairs = false;
  using Sum = float;
  static __device__ __forceinline__ float load(float x) { return x; }
  static __device__ __forceinline__ float add(float a, float b, float sum) { return fmaf(a, b, sum); }
  static __device__ __forceinline__ float promote(float sum, float, float total, bool is_first) {
    return is_first ? sum : total + sum;
  }
  static __device__ __forceinline__ float result(float total) { return total; }
};
struct IdealMath {  // kernels/fp8_gemm.h
  static constexpr int kBlock = 128;
  static constexpr bool kIsScaled = true, kPairs = true;
  using Sum = float;
  static __device__ __forceinline__ float load(uint8_t code) { return ptx::float_from_e4m3(code); }
  static __device__ __forceinline__ float add(float a, float b, float sum) { return fmaf(a, b, sum); }
  static __device__ __forceinline__ float promote(float sum, float scale, float total, bool is_first) {
    return fmaf(sum, scale, is_first ? 0.0f : total);
  }
  static __device__ __forceinline__ float result(float total) {
    return total == total ? total : bit_cast<float>(0x7fffffffu);
  }
};
struct Fp64Math {
  static constexpr int kBlock = 128;
  static constexpr bool kIsScaled = true, kPairs = false;
  using Sum = double;
  static __device__ __forceinline__ float load(uint8_t code) { return ptx::float_from_e4m3(code); }
  static __device__ __forceinline__ double add(float a, float b, double sum) { return sum + double(a) * double(b); }
  static __device__ __forceinline__ double promote(double sum, float scale, double total, bool) {
    return total + sum * double(scale);
  }
  static __device__ __forceinline__ float result(double total) { return float(total); }
};

// write(i, j, sum) for each element of the result that this thread has, of rows by columns at most a tile.
template <class Math>
struct PlainTile {
  static constexpr int kRows = kPlainTile, kColumns = kPlainTile;
  static constexpr size_t kSharedBytes = 0;

  template <class Element, class Write>
  static __device__ __forceinline__ void run(const Operand<Element>& a, const Operand<Element>& b, int64_t row,
                                             int64_t rows, int64_t column, int64_t columns, int64_t K, Write&& write) {
    using Sum = typename Math::Sum;
    OCTET_SHARED(float, a_part, kPlainDepth* kPlainTile);
    OCTET_SHARED(float, b_part, kPlainDepth* kPlainTile);
    const int thread = int(threadIdx.x), i0 = thread / 16 * kPlainSide, j0 = thread % 16 * kPlainSide;
    Sum sum[kPlainSide][kPlainSide] = {}, total[kPlainSide][kPlainSide] = {};
    for (int64_t k0 = 0; k0 == 0 || k0 < K; k0 += kPlainDepth) {
      __syncthreads();  // the last parts have been read
      for (int x = thread; x < kPlainDepth * kPlainTile; x += kGemmThreads) {
        // Neighbouring threads take what lies side by side in memory.
        const int a_i = a.k_step == 1 ? x / kPlainDepth : x % kPlainTile;
        const int a_k = a.k_step == 1 ? x % kPlainDepth : x / kPlainTile;
        const int b_j = b.k_step == 1 ? x / kPlainDepth : x % kPlainTile;
        const int b_k = b.k_step == 1 ? x % kPlainDepth : x / kPlainTile;
        a_part[a_k * kPlainTile + a_i] = a_i < rows && k0 + a_k < K ? Math::load(a.at(row + a_i, k0 + a_k)) : 0.0f;
        b_part[b_k * kPlainTile + b_j] =
            b_j < columns && k0 + b_k < K ? Math::load(b.at(column + b_j, k0 + b_k)) : 0.0f;
      }
      __syncthreads();
      const int n = int(K - k0 < kPlainDepth ? K - k0 : kPlainDepth);
      for (int word = 0; word < (Math::kPairs ? (n + 1) / 2 * 2 : n); ++word) {
        const int k = Math::kPairs ? word ^ 1 : word;  // the odd one of a pair first
        float x[kPlainSide], y[kPlainSide];
        for (int i = 0; i < kPlainSide; ++i)
          x[i] = a_part[k * kPlainTile + i0 + i], y[i] = b_part[k * kPlainTile + j0 + i];
        for (int i = 0; i < kPlainSide; ++i) {
          for (int j = 0; j < kPlainSide; ++j) sum[i][j] = Math::add(x[i], y[j], sum[i][j]);
        }
      }
      if ((k0 + kPlainDepth) % Math::kBlock != 0 && k0 + kPlainDepth < K) continue;
      const int64_t block = k0 / Math::kBlock;
      float a_scale[kPlainSide], b_scale[kPlainSide];
      for (int i = 0; i < kPlainSide; ++i) {
        a_scale[i] = b_scale[i] = Math::kIsScaled ? 0.0f : 1.0f;
        if (Math::kIsScaled && i0 + i < rows && K > 0) a_scale[i] = a.scale_at(row + i0 + i, block);
        if (Math::kIsScaled && j0 + i < columns && K > 0) b_scale[i] = b.scale_at(column + j0 + i, block);
      }
      for (int i = 0; i < kPlainSide; ++i) {
        for (int j = 0; j < kPlainSide; ++j) {
          total[i][j] = Math::promote(sum[i][j], a_scale[i] * b_scale[j], total[i][j], block == 0);
          sum[i][j] = Sum(0);
        }
      }
    }
    for (int i = 0; i < kPlainSide; ++i) {
      for (int j = 0; j < kPlainSide; ++j) {
        if (i0 + i < rows && j0 + j < columns) write(row + i0 + i, column + j0 + j, Math::result(total[i][j]));
      }
    }
  }
};

}  // namespace octet::kernels::cuda
