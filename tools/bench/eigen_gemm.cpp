// Compiled once for each instruction set. Eigen chooses its code by macros, under the same names whatever it chooses,
// so each copy of it gets a namespace of its own.
#include "tools/bench/eigen_gemm.h"

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <cmath>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iosfwd>
#include <limits>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "core/base/isa.h"

#define EIGEN_DONT_PARALLELIZE
#if OCTET_ISA_LEVEL == 2
#ifdef OCTET_EMULATE_AVX512  // for the machine that emulates, which has no more than this
#pragma GCC target("avx2,fma,f16c")
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define Eigen EigenAvx512
#define eigen_gemm_columns eigen_gemm_columns_avx512
#elif OCTET_ISA_LEVEL == 1
#pragma GCC target("avx2,fma,f16c")
#define Eigen EigenAvx2
#define eigen_gemm_columns eigen_gemm_columns_avx2
#else
#define Eigen EigenGeneric
#define eigen_gemm_columns eigen_gemm_columns_generic
#endif
#include <Eigen/Core>

namespace octet {

// Columns [begin, end) of c.
void eigen_gemm_columns(const float* a, const float* b, float* c, int64_t M, int64_t N, int64_t K, int64_t begin,
                        int64_t end) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Eigen::Map<const Matrix> left(a, M, K), right(b + begin * K, end - begin, K);
  Eigen::Map<Matrix, 0, Eigen::OuterStride<>> result(c + begin, M, end - begin, Eigen::OuterStride<>(N));
  result.noalias() = left * right.transpose();
}

#if OCTET_ISA_LEVEL == 0
void eigen_gemm_columns_avx2(const float*, const float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t);
void eigen_gemm_columns_avx512(const float*, const float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t);

void eigen_gemm(const float* a, const float* b, float* c, int64_t M, int64_t N, int64_t K, Stream& stream) {
  const int64_t threads = stream.pool().num_threads();
  const int64_t columns = std::max<int64_t>(16, (N + threads - 1) / threads);
  stream.parallel_chunks(N, columns, [&](int64_t begin, int64_t end) {
    switch (current_isa()) {
#if defined(__x86_64__)
      case Isa::kAvx512:
        return eigen_gemm_columns_avx512(a, b, c, M, N, K, begin, end);
      case Isa::kAvx2:
        return eigen_gemm_columns_avx2(a, b, c, M, N, K, begin, end);
#endif
      default:
        return eigen_gemm_columns(a, b, c, M, N, K, begin, end);
    }
  });
}
#endif

}  // namespace octet
