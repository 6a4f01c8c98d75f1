#include "kernels/gemm_clusters.h"

#include <catch2/catch.hpp>
#include <cstring>
#include <functional>

#include "kernels/fp8_gemm.h"
#include "kernels/gemm.h"
#include "kernels/quantize.h"
#include "tests/kernels/backend.h"
#include "tests/support/numeric.h"
#ifdef OCTET_EMULATE_CUDA
#include "kernels/cuda/emulation/block.h"
#endif

namespace octet::test {
namespace {

using kernels::Emulation;
using kernels::GemmClusters;

struct UseGemmClusters {
  explicit UseGemmClusters(GemmClusters wanted) : before(kernels::gemm_clusters()) {
    kernels::set_gemm_clusters(wanted);
  }
  ~UseGemmClusters() { kernels::set_gemm_clusters(before); }
  UseGemmClusters(const UseGemmClusters&) = delete;
  UseGemmClusters& operator=(const UseGemmClusters&) = delete;
  GemmClusters before;
};

int64_t blocks(int64_t n) { return (n + 127) / 128; }
std::vector<uint8_t> codes(int64_t n, uint64_t seed) {
  const RandomStream random(seed, "codes");
  std::vector<uint8_t> all;
  for (int64_t i = 0; i < n; ++i) {
    all.push_back(uint8_t(random.below(127, uint64_t(i)) | random.below(2, uint64_t(i), 1) << 7));
  }
  return all;
}
std::vector<bfloat16> numbers(int64_t n, uint64_t seed) {
  std::vector<bfloat16> all;
  for (const float x : uniform<float>(n, seed)) all.push_back(bfloat16(x));
  return all;
}
View codes_view(std::vector<uint8_t>& values, Shape shape) { return View(values.data(), shape, DType::kFloat8E4M3); }

// Row tiles of groups: none, three, of which the last block has no partner's, one row, and two.
const std::vector<int64_t> kOffsets = {0, 0, 260, 261, 261, 420};
constexpr int64_t kGroups = 5, kRows = 420;

void on_each_gpu(const std::function<void(const Backend&)>& check) {
  const std::vector<Backend> all = cuda_backends();
  if (all.empty()) WARN("skipped: no GPU");
  for (const Backend& backend : all) {
    const UseBackend use(backend);
    check(backend);
  }
}

// The same bits with blocks in pairs as with each for itself. multiply(c) leaves its result in c.
template <class Result>
void check_same_bits(int64_t n, const std::function<void(std::vector<Result>&)>& multiply) {
  std::vector<Result> single, pairs;
  for (const float x : uniform<float>(n, 7)) single.push_back(Result(x));
  pairs = single;
  const std::vector<Result> before = single;
  {
    const UseGemmClusters use(GemmClusters::kOff);
    multiply(single);
  }
#ifdef OCTET_EMULATE_CUDA
  const int64_t clusters_before = emulation::clusters_run();
#endif
  {
    const UseGemmClusters use(GemmClusters::kOn);
    multiply(pairs);
  }
#ifdef OCTET_EMULATE_CUDA
  CHECK(emulation::clusters_run() == clusters_before + 2);  // of 5 multiprocessors
#endif
  CHECK(std::memcmp(single.data(), pairs.data(), size_t(n) * sizeof(Result)) == 0);
  CHECK(std::memcmp(single.data(), before.data(), size_t(n) * sizeof(Result)) != 0);
}

template <class Result>
void check_fp8(int64_t N, int64_t K, bool gather) {
  const int64_t S = gather ? 100 : kRows;
  auto a = codes(S * K, 1), b = codes(kGroups * N * K, 2);
  auto a_scale = uniform<float>(S * blocks(K), 3), b_scale = uniform<float>(kGroups * blocks(N) * blocks(K), 4);
  auto offsets = kOffsets;
  std::vector<int32_t> rows;
  for (int64_t r = 0; r < kRows; ++r) rows.push_back(int32_t(r * 37 % S));
  check_same_bits<Result>(kRows * N, [&](std::vector<Result>& c) {
    kernels::fp8_grouped_gemm({.a = codes_view(a, {S, K}),
                               .a_scale = view(a_scale, {S, blocks(K)}),
                               .b = codes_view(b, {kGroups, N, K}),
                               .b_scale = view(b_scale, {kGroups, blocks(N), blocks(K)}),
                               .offsets = view(offsets, {kGroups + 1}),
                               .rows = gather ? ConstView(view(rows, {kRows})) : ConstView(),
                               .c = view(c, {kRows, N}),
                               .emulation = Emulation::kHopper},
                              here());
  });
}

template <class Result>
void check_bf16(int64_t N, int64_t K, bool gather, bool b_is_kn, bool accumulate) {
  const int64_t S = gather ? 100 : kRows;
  auto a = numbers(S * K, 1), b = numbers(kGroups * N * K, 2);
  auto offsets = kOffsets;
  std::vector<int32_t> rows;
  for (int64_t r = 0; r < kRows; ++r) rows.push_back(int32_t(r * 37 % S));
  check_same_bits<Result>(kRows * N, [&](std::vector<Result>& c) {
    kernels::grouped_gemm({.a = view(a, {S, K}),
                           .b = view(b, b_is_kn ? Shape{kGroups, K, N} : Shape{kGroups, N, K}),
                           .offsets = view(offsets, {kGroups + 1}),
                           .rows = gather ? ConstView(view(rows, {kRows})) : ConstView(),
                           .c = view(c, {kRows, N}),
                           .b_is_kn = b_is_kn,
                           .accumulate = accumulate},
                          here());
  });
}

// Gradients of 3 groups of 130 rows, 700, none and 1: more blocks of k than a ring has stages, none, and one.
void check_wgrad(int64_t N, int64_t K, bool by_tiles, bool accumulate) {
  std::vector<int64_t> offsets = {0, 700, 700, 701}, block_offsets = {0, 6, 6, 7};
  const int64_t G = 3, P = 7 * 128, lines = by_tiles ? 128 : 1;
  auto dy = codes(N * P, 1), x = codes(K * P, 2);
  for (auto* const side : {&dy, &x}) {
    for (size_t i = 0; i < side->size(); ++i) {
      const int64_t p = int64_t(i) % P;
      if ((p >= 700 && p < 768) || p > 768) (*side)[i] = 0;  // behind each group
    }
  }
  const int64_t n_scales = (N + lines - 1) / lines, k_scales = (K + lines - 1) / lines;
  auto dy_scale = uniform<float>(P / 128 * n_scales, 3), x_scale = uniform<float>(P / 128 * k_scales, 4);
  check_same_bits<float>(G * N * K, [&](std::vector<float>& dw) {
    kernels::fp8_grouped_wgrad({.dy = codes_view(dy, kernels::column_codes_shape(P, N, device_here())),
                                .dy_scale = view(dy_scale, {P / 128, n_scales}),
                                .x = codes_view(x, kernels::column_codes_shape(P, K, device_here())),
                                .x_scale = view(x_scale, {P / 128, k_scales}),
                                .offsets = view(offsets, {G + 1}),
                                .block_offsets = view(block_offsets, {G + 1}),
                                .dw = view(dw, {G, N, K}),
                                .accumulate = accumulate,
                                .by_tiles = by_tiles,
                                .emulation = Emulation::kHopper},
                               here());
  });
}

// The same in bfloat16, of groups that end in the middle of a tile.
void check_bf16_wgrad(int64_t N, int64_t K, bool accumulate) {
  std::vector<int64_t> offsets = {0, 300, 300, 301, 429};
  const int64_t G = 4, R = 429;
  auto dy = numbers(R * N, 1), x = numbers(R * K, 2);
  check_same_bits<float>(G * N * K, [&](std::vector<float>& dw) {
    kernels::grouped_wgrad({.dy = view(dy, {R, N}),
                            .x = view(x, {R, K}),
                            .offsets = view(offsets, {G + 1}),
                            .rows = {},
                            .dw = view(dw, {G, N, K}),
                            .accumulate = accumulate},
                           here());
  });
}

}  // namespace

// Tiles of 128 columns, and of 256, some of which end within the matrix.
TEST_CASE("pairs of blocks give the bits of single ones: FP8", "[kernels][gemm_clusters]") {
  const bool gather = GENERATE(false, true);
  on_each_gpu([&](const Backend& backend) {
    CAPTURE(backend.name, gather);
    check_fp8<bfloat16>(100, 400, gather);
    check_fp8<bfloat16>(136, 272, gather);
    check_fp8<float>(250, 144, gather);
    check_fp8<float>(8, 16, gather);
  });
}

TEST_CASE("pairs of blocks give the bits of single ones: bfloat16", "[kernels][gemm_clusters]") {
  const bool gather = GENERATE(false, true), b_is_kn = GENERATE(false, true);
  on_each_gpu([&](const Backend& backend) {
    CAPTURE(backend.name, gather, b_is_kn);
    check_bf16<bfloat16>(104, 384, gather, b_is_kn, /*accumulate=*/false);
    check_bf16<float>(200, 320, gather, b_is_kn, /*accumulate=*/true);
  });
}

TEST_CASE("pairs of blocks give the bits of single ones: weight gradients in FP8", "[kernels][gemm_clusters]") {
  const bool by_tiles = GENERATE(false, true), accumulate = GENERATE(false, true);
  on_each_gpu([&](const Backend& backend) {
    CAPTURE(backend.name, by_tiles, accumulate);
    check_wgrad(300, 70, by_tiles, accumulate);
    check_wgrad(130, 250, by_tiles, accumulate);
    check_wgrad(1, 16, by_tiles, accumulate);
  });
}

TEST_CASE("pairs of blocks give the bits of single ones: weight gradients in bfloat16", "[kernels][gemm_clusters]") {
  const bool accumulate = GENERATE(false, true);
  on_each_gpu([&](const Backend& backend) {
    CAPTURE(backend.name, accumulate);
    check_bf16_wgrad(264, 72, accumulate);
    check_bf16_wgrad(136, 248, accumulate);
  });
}

TEST_CASE("a dense product in FP8 has pairs of blocks", "[kernels][gemm_clusters]") {
  on_each_gpu([&](const Backend& backend) {
    CAPTURE(backend.name);
    const int64_t M = 300, N = 136, K = 272;
    auto a = codes(M * K, 1), b = codes(N * K, 2);
    auto a_scale = uniform<float>(M * blocks(K), 3), b_scale = uniform<float>(blocks(N) * blocks(K), 4);
    check_same_bits<bfloat16>(M * N, [&](std::vector<bfloat16>& c) {
      kernels::fp8_grouped_gemm({.a = codes_view(a, {M, K}),
                                 .a_scale = view(a_scale, {M, blocks(K)}),
                                 .b = codes_view(b, {N, K}),
                                 .b_scale = view(b_scale, {blocks(N), blocks(K)}),
                                 .c = view(c, {M, N}),
                                 .emulation = Emulation::kHopper},
                                here());
    });
  });
}

}  // namespace octet::test
