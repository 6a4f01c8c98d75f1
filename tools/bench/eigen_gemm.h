// Eigen's float32 matrix product, compiled for each instruction set, as the rival of ours.
#pragma once

#include <cstdint>

#include "core/base/stream.h"

namespace octet {

// c [M, N] = a [M, K] times the transpose of b [N, K], on the current instruction set. Eigen runs on one thread; here
// each thread of the stream does a part of the columns.
void eigen_gemm(const float* a, const float* b, float* c, int64_t M, int64_t N, int64_t K, Stream& stream);

}  // namespace octet
