#include "kernels/transpose_codes.h"

#include "kernels/cuda/device.cuh"

namespace octet::kernels::cuda {
namespace {

constexpr int kTransposeThreads = 256, kTransposeSide = 64, kTransposeStep = kTransposeSide + 4;

// A block has a tile of 64 by 64, a thread 16 codes along n, then along k.
__global__ void __launch_bounds__(kTransposeThreads)
    transpose_codes_kernel(const uint8_t* from, int64_t K, int64_t N, uint8_t* to) {
  OCTET_SHARED(uint32_t, words, kTransposeSide * kTransposeStep / 4);
  const int thread = int(threadIdx.x), line = thread / 4, piece = thread % 4;
  const int64_t n0 = int64_t(blockIdx.x) * kTransposeSide, k0 = int64_t(blockIdx.y) * kTransposeSide, g = blockIdx.z;
  const int64_t k = k0 + line, first = n0 + piece * 16;
  uint32_t four[4] = {};
  if (k < K && first < N) {
    const uint8_t* const at = from + (g * K + k) * N + first;
    if (N - first >= 16 && reinterpret_cast<uintptr_t>(at) % 16 == 0) {
      const uint4 codes = load_words<uint4>(at);
      four[0] = codes.x, four[1] = codes.y, four[2] = codes.z, four[3] = codes.w;
    } else {
      OCTET_UNROLL
      for (int i = 0; i < 16; ++i) {
        if (first + i < N) four[i / 4] |= uint32_t(at[i]) << i % 4 * 8;
      }
    }
  }
  OCTET_UNROLL
  for (int i = 0; i < 4; ++i) words[line * (kTransposeStep / 4) + piece * 4 + i] = four[i];
  __syncthreads();
  const Shared<uint8_t> codes = words.as<uint8_t>();
  const int64_t out_first = k0 + piece * 16;
  if (n0 + line >= N || out_first >= K) return;
  uint32_t out[4] = {};
  OCTET_UNROLL
  for (int i = 0; i < 16; ++i) {
    out[i / 4] |= uint32_t(codes[(piece * 16 + i) * kTransposeStep + line]) << i % 4 * 8;
  }
  uint8_t* const at = to + (g * N + n0 + line) * K + out_first;
  if (K - out_first >= 16 && reinterpret_cast<uintptr_t>(at) % 16 == 0) {
    uint4 along_k;
    along_k.x = out[0], along_k.y = out[1], along_k.z = out[2], along_k.w = out[3];
    store_words(at, along_k);
  } else {
    OCTET_UNROLL
    for (int i = 0; i < 16; ++i) {
      if (out_first + i < K) at[i] = uint8_t(out[i / 4] >> i % 4 * 8);
    }
  }
}

}  // namespace

void transpose_codes(const TransposeCodes& args, Stream& stream) {
  const int64_t K = args.codes.shape()[-2], N = args.codes.shape()[-1];
  if (args.codes.num_elements() == 0) return;
  const auto tiles = [](int64_t n) { return ceil_div<int64_t>(n, kTransposeSide); };
  launch("transpose_codes", blocks(tiles(N), tiles(K), args.codes.num_elements() / (K * N)), kTransposeThreads, 0,
         stream, transpose_codes_kernel, args.codes.data<uint8_t>(), K, N, args.out.data<uint8_t>());
}

}  // namespace octet::kernels::cuda
