#include "kernels/fp8_tensor_gemm.h"

#include "core/base/fp8.h"
#include "tests/kernels/backend.h"
#include "tests/support/numeric.h"

namespace octet::test {
namespace {

std::vector<uint8_t> codes_of(int64_t count, uint64_t seed) {
  std::vector<uint8_t> codes;
  for (const float x : uniform<float>(count, seed)) codes.push_back(encode_e4m3(x * 448).bits);
  return codes;
}

// Relative to the sum of magnitudes: float32 sums of K terms on the CPU; on GPUs sums of 32 products at a time, of
// which each of 33 terms is cut behind 13 bits, and so is the sum.
double bound(const Backend& backend, int64_t K) {
  return !backend.is_cuda ? double(K + 4) * kEpsilonF32 : double(K / 32 + 1) * 34 * 0x1p-13;
}

template <class Out>
void check(const Backend& backend, int64_t R, int64_t N, int64_t K) {
  const int64_t step = N + 8;
  const auto a = codes_of(R * K, 1), b = codes_of(N * K, 2);
  std::vector<float> a_scale = {0.37f}, b_scale = {1.3e-3f};  // no powers of two
  std::vector<Out> c(size_t(R * step + 1), Out(7.0f));
  kernels::fp8_tensor_gemm({.a = ConstView(a.data(), {R, K}, DType::kFloat8E4M3),
                            .a_scale = view(a_scale, {1}),
                            .b = ConstView(b.data(), {N, K}, DType::kFloat8E4M3),
                            .b_scale = view(b_scale, {1}),
                            .c = View(c.data(), {R, N}, dtype_of<Out>, {}, step)},
                           here());
  int64_t far = 0, touched = 0;
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t n = 0; n < step; ++n) {
      const double got = double(float(c[size_t(r * step + n)]));
      if (n >= N) {
        touched += got != 7.0;
        continue;
      }
      double wanted = 0, size = 0;
      for (int64_t k = 0; k < K; ++k) {
        const double term = double(decode(float8_e4m3{a[size_t(r * K + k)]})) *
                            double(decode(float8_e4m3{b[size_t(n * K + k)]})) * double(a_scale[0]) * double(b_scale[0]);
        wanted += term, size += std::abs(term);
      }
      const double stored = std::is_same_v<Out, float> ? 2 * kEpsilonF32 : kEpsilonBF16;
      far += !(std::abs(got - wanted) <= (bound(backend, K) + stored) * size);
    }
  }
  CHECK(far == 0);
  CHECK(touched == 0);
}

}  // namespace

TEST_CASE("fp8_tensor_gemm follows its formula", "[kernels][fp8_gemm][dense]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  // With 16 rows, columns and k what a library has a form for, without what it has none for.
  const int64_t R = GENERATE(0, 1, 16, 72), N = GENERATE(1, 16, 136), K = GENERATE(0, 16, 31, 400);
  CAPTURE(backend.name, R, N, K);
  check<float>(backend, R, N, K);
  check<bfloat16>(backend, R, N, K);
}

}  // namespace octet::test
