#include "kernels/transpose_codes.h"

#include "tests/kernels/backend.h"
#include "tests/support/numeric.h"

namespace octet::test {

TEST_CASE("transpose_codes exchanges the last two axes of each matrix", "[kernels][transpose_codes]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t G = GENERATE(0, 1, 3), K = GENERATE(0, 1, 15, 16, 64, 83, 144), N = GENERATE(0, 1, 16, 65, 130);
  CAPTURE(backend.name, G, K, N);
  const RandomStream random(1, "codes");
  std::vector<uint8_t> codes(size_t(G * K * N)), out(codes.size() + 1, 0xa5);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = uint8_t(random.below(256, i));
  std::vector<uint8_t> wanted(out.size(), 0xa5);  // one behind the end, which stays
  for (int64_t g = 0; g < G; ++g) {
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t n = 0; n < N; ++n) wanted[size_t((g * N + n) * K + k)] = codes[size_t((g * K + k) * N + n)];
    }
  }
  codes.reserve(1);
  const View from(codes.data(), {G, K, N}, DType::kFloat8E4M3), to(out.data(), {G, N, K}, DType::kFloat8E4M3);
  kernels::transpose_codes({.codes = from, .out = to}, here());
  CHECK(out == wanted);
  if (G != 1) return;
  std::fill(out.begin(), out.end(), uint8_t(0xa5));
  const View matrix(codes.data(), {K, N}, DType::kFloat8E4M3), other(out.data(), {N, K}, DType::kFloat8E4M3);
  kernels::transpose_codes({.codes = matrix, .out = other}, here());
  CHECK(out == wanted);
}

}  // namespace octet::test
