// A matrix product on the tensor cores for operands of any step and boundary (gemm_persistent.cuh is the fast form): a
// tile of 128 by 128, two warpgroups of 64 rows each, 128 bytes of k at a time, loaded by all threads into the swizzled
// form that wgmma reads. FP8 is promoted to float32 every 128 of k
// (arXiv:2412.19437, section 3.3.2); its bits are those of Emulation::kHopper. bfloat16 stays in the tensor core's own
// sum, whose terms are cut toward zero, so its last bits are not the CPU's.
#pragma once

#include "kernels/cuda/gemm_grid.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

namespace octet::kernels::cuda {

struct Bf16Products {
  using Element = bfloat16;
  static constexpr bool kIsScaled = false;
  static __device__ __forceinline__ uint32_t bits(Element x) { return x.bits; }
  static __device__ __forceinline__ void multiply(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    ptx::wgmma_bf16(d, a, b, accumulate);
  }
  static __device__ __forceinline__ void multiply_transposed(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    ptx::wgmma_bf16_transposed(d, a, b, accumulate);
  }
  static __device__ __forceinline__ void multiply_both_transposed(float (&d)[64], uint64_t a, uint64_t b,
                                                                  bool accumulate) {
    ptx::wgmma_bf16_both_transposed(d, a, b, accumulate);
  }
};
struct E4m3Products {
  using Element = uint8_t;
  static constexpr bool kIsScaled = true;
  static __device__ __forceinline__ uint32_t bits(Element code) { return code; }
  static __device__ __forceinline__ void multiply(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    ptx::wgmma_e4m3(d, a, b, accumulate);
  }
};

template <class Products>
struct TensorTile {
  using Element = typename Products::Element;
  static constexpr int kRows = 128, kColumns = 128;
  static constexpr int kDepth = kSwizzledRowBytes / int(sizeof(Element));  // of k at a time
  static constexpr int kSteps = 4;                                         // products of 32 bytes of k
  static constexpr uint32_t kTileBytes = 128 * kSwizzledRowBytes, kAtom = 1024;
  // A, B, the scales of both, and what it takes to begin on an atom's boundary.
  static constexpr size_t kSharedBytes = 2 * kTileBytes + (Products::kIsScaled ? 2 * 128 * sizeof(float) : 0) + kAtom;

  // 16 bytes of line i along k, zeros behind the last k.
  static __device__ __forceinline__ uint4 load_piece(const Operand<Element>& from, int64_t i, int64_t k, int64_t K) {
    constexpr int kElements = 16 / int(sizeof(Element));
    uint32_t words[4] = {};
    if (from.k_step == 1 && from.ks == nullptr && K - k >= kElements) {
      const Element* at = from.data + from.line(i) * from.line_step + from.first_k + k;
      if (reinterpret_cast<uintptr_t>(at) % 16 == 0) return load_words<uint4>(at);
    }
    for (int e = 0; e < kElements; ++e) {
      if (k + e < K)
        words[e * int(sizeof(Element)) / 4] |= Products::bits(from.at(i, k + e)) << e * int(sizeof(Element)) % 4 * 8;
    }
    uint4 piece;
    piece.x = words[0], piece.y = words[1], piece.z = words[2], piece.w = words[3];
    return piece;
  }
  static __device__ __forceinline__ void load_tile(const Operand<Element>& from, int64_t first, int64_t count,
                                                   int64_t k0, int64_t K, const Shared<uint4>& to) {
    constexpr int kPieces = kSwizzledRowBytes / 16;
    for (int x = int(threadIdx.x); x < 128 * kPieces; x += kGemmThreads) {
      // Neighbouring threads take what lies side by side in memory.
      const int i = from.k_step == 1 ? x / kPieces : x % 128, piece = from.k_step == 1 ? x % kPieces : x / 128;
      uint4 words = {};
      if (i < count) words = load_piece(from, first + i, k0 + piece * (kDepth / kPieces), K);
      to[int(swizzled_offset(uint32_t(i), uint32_t(piece) * 16) / 16)] = words;
    }
  }

  template <class Write>
  static __device__ __forceinline__ void run(const Operand<Element>& a, const Operand<Element>& b, int64_t row,
                                             int64_t rows, int64_t column, int64_t columns, int64_t K, Write&& write) {
    const uint32_t start = dynamic_shared_address(), base = (start + kAtom - 1) / kAtom * kAtom;
    const Shared<uint4> a_tile = dynamic_shared<uint4>(base - start, kTileBytes / 16);
    const Shared<uint4> b_tile = dynamic_shared<uint4>(base - start + kTileBytes, kTileBytes / 16);
    const Shared<float> scales = dynamic_shared<float>(base - start + 2 * kTileBytes, Products::kIsScaled ? 256 : 0);
    const int thread = int(threadIdx.x), half = thread / 128;
    float sum[64] = {}, total[64] = {};
    for (int64_t k0 = 0; k0 < K; k0 += kDepth) {
      __syncthreads();  // the last tiles have been read
      load_tile(a, row, rows, k0, K, a_tile);
      load_tile(b, column, columns, k0, K, b_tile);
      if constexpr (Products::kIsScaled) {
        const bool is_a = thread < 128;
        const int i = thread % 128;
        float scale = 0.0f;
        if (is_a && i < rows) scale = a.scale_at(row + i, k0 / kDepth);
        if (!is_a && i < columns) scale = b.scale_at(column + i, k0 / kDepth);
        scales[thread] = scale;
      }
      ptx::fence_proxy_async();
      __syncthreads();
      ptx::wgmma_fence();
      for (int step = 0; step < kSteps; ++step) {
        const uint32_t along = base + uint32_t(step) * 32;
        Products::multiply(sum, wgmma_descriptor(along + uint32_t(half) * 64 * kSwizzledRowBytes),
                           wgmma_descriptor(along + kTileBytes), step > 0 || (!Products::kIsScaled && k0 > 0));
      }
      ptx::wgmma_commit();
      ptx::wgmma_wait();
      if constexpr (Products::kIsScaled) {
        for (int i = 0; i < 64; ++i) {
          const Place at = wgmma_place(thread % 128, i);
          total[i] = fmaf(sum[i], scales[half * 64 + at.row] * scales[128 + at.column], total[i]);
        }
      }
    }
    for (int i = 0; i < 64; ++i) {
      const Place at = wgmma_place(thread % 128, i);
      const int r = half * 64 + at.row;
      float result = Products::kIsScaled ? total[i] : sum[i];
      if (result != result) result = bit_cast<float>(0x7fffffffu);
      if (r < rows && at.column < columns) write(row + r, column + at.column, result);
    }
  }
};

}  // namespace octet::kernels::cuda
