// How products of whole matrices are put to a library, and that it gives what Octet's own kernels give.
#include "kernels/cuda/dense_product.h"

#include "core/base/fp8.h"
#include "tests/kernels/backend.h"
#include "tests/support/numeric.h"

namespace octet::test {
namespace {

using namespace kernels;
using kernels::cuda::as_dense_product;
using kernels::cuda::DenseGemm;
using kernels::cuda::DenseOperand;
using kernels::cuda::DenseProduct;

struct UseDenseGemm {
  explicit UseDenseGemm(DenseGemm who) : before(cuda::dense_gemm()) { cuda::set_dense_gemm(who); }
  ~UseDenseGemm() { cuda::set_dense_gemm(before); }
  DenseGemm before;
};

// What DenseProduct says, read literally.
double element(const DenseOperand& x, int64_t row, int64_t column) {
  const auto* data = static_cast<const bfloat16*>(x.data);
  return float(x.is_transposed ? data[row * x.step + column] : data[column * x.step + row]);
}
double sum_of(const DenseProduct& p, int64_t i, int64_t j) {
  double sum = 0;
  for (int64_t k = 0; k < p.k; ++k) sum += element(p.left, i, k) * element(p.right, k, j);
  return sum;
}

}  // namespace

TEST_CASE("a product by columns is the product by rows", "[kernels][dense]") {
  constexpr int64_t R = 3, N = 5, K = 4, kWideK = 6, kWideN = 9;
  const bool b_is_kn = GENERATE(false, true);
  auto a = uniform<bfloat16>(R * kWideK, 1), b = uniform<bfloat16>(N * K, 2);
  std::vector<float> c(size_t(R * kWideN));
  const GroupedGemm args{.a = View(a.data(), {R, K}, DType::kBFloat16, {}, kWideK),
                         .b = view(b, b_is_kn ? Shape{K, N} : Shape{N, K}),
                         .c = View(c.data(), {R, N}, DType::kFloat32, {}, kWideN),
                         .b_is_kn = b_is_kn,
                         .accumulate = true};
  const auto product = as_dense_product(args);
  REQUIRE(product);
  CHECK((product->m == N && product->n == R && product->k == K && product->accumulate));
  CHECK((product->result == c.data() && product->result_step == kWideN && product->result_type == DType::kFloat32));
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t n = 0; n < N; ++n) {
      double wanted = 0;
      for (int64_t k = 0; k < K; ++k) {
        wanted += double(a[size_t(r * kWideK + k)]) * double(b[size_t(b_is_kn ? k * N + n : n * K + k)]);
      }
      CHECK(sum_of(*product, n, r) == wanted);
    }
  }

  auto dy = uniform<bfloat16>(R * N, 3), x = uniform<bfloat16>(R * K, 4);
  std::vector<float> dw(size_t(N * K));
  const auto sums = as_dense_product(
      GroupedWgrad{.dy = view(dy, {R, N}), .x = view(x, {R, K}), .dw = view(dw, {N, K}), .accumulate = false});
  REQUIRE(sums);
  CHECK((sums->m == K && sums->n == N && sums->k == R && sums->result_step == K && !sums->accumulate));
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = 0; k < K; ++k) {
      double wanted = 0;
      for (int64_t r = 0; r < R; ++r) wanted += double(dy[size_t(r * N + n)]) * double(x[size_t(r * K + k)]);
      CHECK(sum_of(*sums, k, n) == wanted);
    }
  }
}

TEST_CASE("a library gets only what it has a form for", "[kernels][dense]") {
  std::vector<bfloat16> a(64), b(64);
  std::vector<float> c(64), single(64), scale(64);
  std::vector<int64_t> offsets = {0, 4, 8};
  std::vector<int32_t> rows(8);
  const GroupedGemm whole{.a = view(a, {8, 8}), .b = view(b, {8, 8}), .c = view(c, {8, 8})};
  CHECK(as_dense_product(whole));
  GroupedGemm other = whole;
  other.offsets = view(offsets, {3});
  CHECK_FALSE(as_dense_product(other));
  other = whole, other.rows = view(rows, {8});
  CHECK_FALSE(as_dense_product(other));
  other = whole, other.a = view(single, {8, 8});
  CHECK_FALSE(as_dense_product(other));
  other = whole, other.a = View(a.data(), {8, 0}, DType::kBFloat16), other.b = View(b.data(), {8, 0}, DType::kBFloat16);
  CHECK_FALSE(as_dense_product(other));  // its result is 0, not nothing

  alignas(16) uint8_t codes[8 * 32 + 8];
  const auto fp8 = [&](int64_t R, int64_t N, int64_t K, bool b_is_kn = false, int shift = 0) {
    const Shape b_shape = b_is_kn ? Shape{K, N} : Shape{N, K};
    return as_dense_product(Fp8GroupedGemm{.a = ConstView(codes + shift, {R, K}, DType::kFloat8E4M3),
                                           .a_scale = view(scale, {8, 8}),
                                           .b = ConstView(codes, b_shape, DType::kFloat8E4M3),
                                           .b_scale = view(scale, {8, 8}),
                                           .c = View(c.data(), {R, N}, DType::kFloat32),
                                           .b_is_kn = b_is_kn,
                                           .emulation = Emulation::kHopper});
  };
  const bool is_on_boundary = reinterpret_cast<uintptr_t>(c.data()) % 16 == 0;
  CHECK(fp8(8, 8, 16).has_value() == is_on_boundary);
  CHECK_FALSE(fp8(0, 8, 16));
  CHECK_FALSE(fp8(7, 8, 16));
  CHECK_FALSE(fp8(8, 4, 16));
  CHECK_FALSE(fp8(8, 8, 24));
  CHECK_FALSE(fp8(8, 8, 16, /*b_is_kn=*/true));
  CHECK_FALSE(fp8(8, 8, 16, /*b_is_kn=*/false, /*shift=*/8));
}

TEST_CASE("dense products of a library are those of Octet", "[kernels][dense]") {
  if (cuda_backends().empty()) {
    WARN("skipped: no GPU");
    return;
  }
  const UseBackend use(cuda_backends().front());
  const int64_t R = GENERATE(8, 72), N = GENERATE(8, 136), K = GENERATE(16, 144, 400);
  CAPTURE(R, N, K);
  const auto a = uniform<bfloat16>(R * K, 1), b = uniform<bfloat16>(N * K, 2), dy = uniform<bfloat16>(R * N, 3);
  std::vector<uint8_t> a_codes, b_codes;
  for (const bfloat16 x : a) a_codes.push_back(encode_e4m3(float(x) * 256).bits);
  for (const bfloat16 x : b) b_codes.push_back(encode_e4m3(float(x) * 256).bits);
  const int64_t k_blocks = (K + 127) / 128, n_blocks = (N + 127) / 128;
  std::vector<float> a_scale, b_scale;
  for (int64_t i = 0; i < R * k_blocks; ++i) a_scale.push_back(std::ldexp(1.0f, int(i % 7) - 10));
  for (int64_t i = 0; i < n_blocks * k_blocks; ++i) b_scale.push_back(std::ldexp(1.0f, int(i % 5) - 9));
  const auto results = [&](DenseGemm who) {
    const UseDenseGemm use_dense(who);
    std::vector<float> of_bf16(size_t(R * N)), of_fp8(size_t(R * N));
    kernels::grouped_gemm({.a = ConstView(a.data(), {R, K}, DType::kBFloat16),
                           .b = ConstView(b.data(), {N, K}, DType::kBFloat16),
                           .c = view(of_bf16, {R, N})},
                          here());
    kernels::fp8_grouped_gemm({.a = ConstView(a_codes.data(), {R, K}, DType::kFloat8E4M3),
                               .a_scale = view(a_scale, {R, k_blocks}),
                               .b = ConstView(b_codes.data(), {N, K}, DType::kFloat8E4M3),
                               .b_scale = view(b_scale, {n_blocks, k_blocks}),
                               .c = view(of_fp8, {R, N}),
                               .emulation = Emulation::kHopper},
                              here());
    std::vector<float> dw(size_t(N * K), 1.0f);
    kernels::grouped_wgrad({.dy = ConstView(dy.data(), {R, N}, DType::kBFloat16),
                            .x = ConstView(a.data(), {R, K}, DType::kBFloat16),
                            .dw = view(dw, {N, K})},
                           here());
    return std::tuple{of_bf16, of_fp8, dw};
  };
  const auto [own_bf16, own_fp8, own_dw] = results(DenseGemm::kOctet);
  const auto [library_bf16, library_fp8, library_dw] = results(DenseGemm::kCublaslt);
  // Numbers below 1: each of 17 terms is cut at 2^-25 of the largest, the sum at 2^-23, once in 16 products.
  CHECK_THAT(doubles(library_bf16), NearAll(doubles(own_bf16), double(K / 16 + 1) * (17 * 0x1p-24 + 0x1p-22), 1.0));
  CHECK_THAT(doubles(library_dw), NearAll(doubles(own_dw), double(R / 16 + 2) * (17 * 0x1p-24 + 0x1p-22), 1.0));
  // Scales are powers of two and sums are promoted every 128 of k: the same bits.
  CHECK(library_fp8 == own_fp8);
}

}  // namespace octet::test
