#include "kernels/transpose_codes.h"

#include <algorithm>

namespace octet::kernels {

void cpu::transpose_codes(const TransposeCodes& args, Stream& stream) {
  constexpr int64_t kSide = 64;  // of a tile, both forms of which stay in the nearest cache
  const int64_t K = args.codes.shape()[-2], N = args.codes.shape()[-1];
  const int64_t tiles = (N + kSide - 1) / kSide;
  if (args.codes.num_elements() == 0) return;
  stream.parallel_for(args.codes.num_elements() / (K * N) * tiles, [&](int64_t i) {
    const int64_t first = i % tiles * kSide, end = std::min(first + kSide, N);
    const uint8_t* const from = args.codes.data<uint8_t>() + i / tiles * K * N;
    uint8_t* const to = args.out.data<uint8_t>() + i / tiles * K * N;
    for (int64_t k0 = 0; k0 < K; k0 += kSide) {
      const int64_t k_end = std::min(k0 + kSide, K);
      for (int64_t n = first; n < end; ++n) {
        for (int64_t k = k0; k < k_end; ++k) to[n * K + k] = from[k * N + n];
      }
    }
  });
}

}  // namespace octet::kernels
