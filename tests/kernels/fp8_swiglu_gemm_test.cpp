#include "kernels/fp8_swiglu_gemm.h"

#include <cstring>
#include <limits>
#include <memory>

#include "core/base/fp8.h"
#include "kernels/gemm_clusters.h"
#include "tests/kernels/backend.h"
#include "tests/support/numeric.h"
#ifdef OCTET_EMULATE_CUDA
#include "kernels/cuda/emulation/block.h"
#endif

namespace octet::test {
namespace {

using kernels::Emulation;
using kernels::QuantizeStats;

int64_t blocks(int64_t n) { return (n + 127) / 128; }
View codes_view(std::vector<uint8_t>& values, Shape shape) {
  REQUIRE(int64_t(values.size()) == shape.num_elements());
  if (values.empty()) values.reserve(1);
  return View(values.data(), shape, DType::kFloat8E4M3);
}

// What both forms read.
struct Problem {
  int64_t F, K, G, R, S;
  std::vector<int64_t> offsets{0}, count;
  std::vector<int32_t> rows;
  std::vector<uint8_t> a, b;
  std::vector<float> a_scale, b_scale, weights;
  bool is_gathered = false, has_weights = false, keeps_h = true;
  float limit = 0.0f;

  // room: rows beyond those of the groups. size: of the numbers of h, about.
  Problem(const std::vector<int64_t>& sizes, int64_t f, int64_t k, bool gather = false, int64_t room = 0,
          float size = 2.0f)
      : F(f), K(k), G(int64_t(sizes.size())), is_gathered(gather) {
    for (const int64_t n : sizes) offsets.push_back(offsets.back() + n);
    count.push_back(offsets.back());
    R = offsets.back() + room;
    S = gather ? R / 2 + 1 : R;
    for (int64_t r = 0; r < R; ++r) rows.push_back(int32_t(r * 37 % S));
    const RandomStream random(1, "codes");
    const auto fill = [&](std::vector<uint8_t>& codes, int64_t n, uint64_t stream) {
      for (int64_t i = 0; i < n; ++i) codes.push_back(encode_e4m3(random.normal(uint64_t(i), stream) * 64).bits);
    };
    fill(a, S * K, 1), fill(b, G * 2 * F * K, 2);
    // Sums of K products of numbers of 64: powers of two about size / (64 * 64 * sqrt(K)), some a quarter of it.
    const float scale = std::exp2(std::round(std::log2(size / (4096.0f * std::sqrt(float(K > 0 ? K : 1))))));
    for (int64_t i = 0; i < S * blocks(K); ++i) a_scale.push_back(i % 5 == 0 ? 0.25f : 1.0f);
    for (int64_t i = 0; i < G * blocks(2 * F) * blocks(K); ++i) b_scale.push_back(i % 3 == 0 ? scale / 4 : scale);
    weights = uniform(R, 3);
  }
};

struct Result {
  std::vector<uint8_t> h_codes, y_codes;
  std::vector<float> h_scale, y_scale;
  std::vector<QuantizeStats> stats;

  explicit Result(const Problem& p)
      : h_codes(size_t(p.keeps_h ? p.R * 2 * p.F : 0), 0xaa),
        y_codes(size_t(p.R * p.F), 0xaa),
        h_scale(size_t(p.keeps_h ? p.R * blocks(2 * p.F) : 0), -1.0f),
        y_scale(size_t(p.R * blocks(p.F)), -1.0f),
        stats(1) {}
  kernels::Fp8SwigluGemm args(Problem& p, Emulation emulation) {
    const bool is_dense = p.G == 1 && p.offsets[1] == p.R;
    return {.a = codes_view(p.a, {p.S, p.K}),
            .a_scale = view(p.a_scale, {p.S, blocks(p.K)}),
            .b = codes_view(p.b, is_dense ? Shape{2 * p.F, p.K} : Shape{p.G, 2 * p.F, p.K}),
            .b_scale = view(p.b_scale, {p.G, blocks(2 * p.F), blocks(p.K)}),
            .offsets = is_dense ? ConstView() : ConstView(view(p.offsets, {p.G + 1})),
            .rows = p.is_gathered ? ConstView(view(p.rows, {p.R})) : ConstView(),
            .emulation = emulation,
            .weights = p.has_weights ? ConstView(view(p.weights, {p.R})) : ConstView(),
            .limit = p.limit,
            .h_codes = p.keeps_h ? codes_view(h_codes, {p.R, 2 * p.F}) : View(),
            .h_scale = p.keeps_h ? view(h_scale, {p.R, blocks(2 * p.F)}) : View(),
            .y_codes = codes_view(y_codes, {p.R, p.F}),
            .y_scale = view(y_scale, {p.R, blocks(p.F)}),
            .stats = stats.data(),
            .num_rows = is_dense ? ConstView() : ConstView(view(p.count, {1}))};
  }
};

int64_t grids() {
#ifdef OCTET_EMULATE_CUDA
  return emulation::grids_run();
#else
  return 0;
#endif
}

// Bit by bit what the two kernels give one after the other.
void check_same(Problem& p, const Backend& backend, bool is_in_one, Emulation emulation = Emulation::kHopper) {
  Result wanted(p), got(p);
  {
    auto h = std::vector<bfloat16>(size_t(p.R * 2 * p.F), bfloat16(0.0f));
    const auto args = wanted.args(p, emulation);
    const View h_view = view(h, {p.R, 2 * p.F});
    kernels::fp8_grouped_gemm(kernels::product_of(args, h_view), here());
    kernels::swiglu_forward_fp8(kernels::activation_of(args, h_view), here());
  }
  const int64_t grids_before = grids();
  kernels::fp8_swiglu_gemm(got.args(p, emulation), here());
#ifdef OCTET_EMULATE_CUDA
  if (backend.is_cuda && p.R > 0) CHECK((grids() == grids_before + 1) == is_in_one);
#else
  (void)grids_before, (void)backend, (void)is_in_one;
#endif
  CHECK(got.h_codes == wanted.h_codes);
  CHECK(got.h_scale == wanted.h_scale);
  CHECK(got.y_codes == wanted.y_codes);
  CHECK(got.y_scale == wanted.y_scale);
  CAPTURE(got.stats[0].count, got.stats[0].flushed, got.stats[0].saturated, got.stats[0].non_finite);
  CAPTURE(wanted.stats[0].count, wanted.stats[0].flushed, wanted.stats[0].saturated, wanted.stats[0].non_finite);
  CHECK(got.stats[0] == wanted.stats[0]);
}

}  // namespace

TEST_CASE("fp8_swiglu_gemm follows its formula", "[kernels][fp8_swiglu_gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const bool gather = GENERATE(false, true), has_weights = GENERATE(false, true);
  const float limit = GENERATE(0.0f, 1.6f);
  const std::vector<int64_t> sizes = GENERATE(std::vector<int64_t>{0}, std::vector<int64_t>{3, 0, 9});
  const int64_t F = GENERATE(0, 100, 128);
  CAPTURE(backend.name, gather, has_weights, limit, sizes, F);
  Problem p(sizes, F, 144, gather);
  p.has_weights = has_weights, p.limit = limit;
  Result result(p);
  // The emulation changes sums by what fp8_gemm_test.cpp bounds; float64 sums leave only what is tested here.
  const bool is_hopper = F == 128;
  kernels::fp8_swiglu_gemm(result.args(p, is_hopper ? Emulation::kHopper : Emulation::kFp64), here());
  const double most = limit > 0 ? double(limit) : INFINITY;
  int64_t far = 0;
  for (int64_t g = 0; g < p.G; ++g) {
    for (int64_t r = p.offsets[size_t(g)]; r < p.offsets[size_t(g + 1)]; ++r) {
      const int64_t from = gather ? p.rows[size_t(r)] : r;
      Doubles h, off;
      for (int64_t n = 0; n < 2 * F; ++n) {
        double sum = 0, size = 0;
        for (int64_t k = 0; k < p.K; ++k) {
          const double term = double(decode(float8_e4m3{p.a[size_t(from * p.K + k)]})) *
                              double(decode(float8_e4m3{p.b[size_t((g * 2 * F + n) * p.K + k)]})) *
                              double(p.a_scale[size_t(from * blocks(p.K) + k / 128)]) *
                              double(p.b_scale[size_t((g * blocks(2 * F) + n / 128) * blocks(p.K) + k / 128)]);
          sum += term, size += std::abs(term);
        }
        // Rounded to bfloat16; and 13 bits cut at each of 33 terms of each of 4 steps.
        h.push_back(sum), off.push_back(std::abs(sum) * kEpsilonBF16 / 2 + (is_hopper ? 4 * 33 * 0x1p-13 * size : 0));
      }
      // A code is within 2^-4 of its number, or half of the smallest code.
      const auto look = [&](uint8_t code, float scale, double value, double value_off) {
        const double got = double(decode(float8_e4m3{code})) * double(scale);
        far += !(std::abs(got - value) <= value_off + (std::abs(value) + value_off) * 0x1p-4 + double(scale) * 0x1p-10);
      };
      for (int64_t n = 0; n < 2 * F; ++n) {
        look(result.h_codes[size_t(r * 2 * F + n)], result.h_scale[size_t(r * blocks(2 * F) + n / 128)], h[size_t(n)],
             off[size_t(n)]);
      }
      for (int64_t f = 0; f < F; ++f) {
        const auto value = [&](double gate, double up) {
          gate = std::min(gate, most);
          return (has_weights ? double(p.weights[size_t(r)]) : 1.0) * gate / (1 + std::exp(-gate)) *
                 std::clamp(up, -most, most);
        };
        const double gate = h[size_t(f)], up = h[size_t(F + f)], y = value(gate, up);
        double y_off = std::abs(y) * kEpsilonBF16;  // rounded again, after nine float32 roundings
        for (const double gate_side : {-1.0, 0.0, 1.0}) {
          for (const double up_side : {-1.0, 0.0, 1.0}) {
            // Twice: silu has its least value between.
            const double moved = value(gate + gate_side * off[size_t(f)], up + up_side * off[size_t(F + f)]);
            y_off = std::max(y_off, 2 * std::abs(moved - y) + std::abs(moved) * kEpsilonBF16);
          }
        }
        look(result.y_codes[size_t(r * F + f)], result.y_scale[size_t(r * blocks(F) + f / 128)], y, y_off);
      }
    }
  }
  CHECK(far == 0);
  CHECK(result.stats[0].count == 3 * p.R * F);
  CHECK(result.stats[0].saturated == 0);
  CHECK(result.stats[0].non_finite == 0);
}

TEST_CASE("fp8_swiglu_gemm has the bits of its two parts", "[kernels][fp8_swiglu_gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const bool gather = GENERATE(false, true), has_weights = GENERATE(false, true);
  CAPTURE(backend.name, gather, has_weights);
  const auto check = [&](Problem p, bool is_in_one) {
    CAPTURE(p.offsets, p.F, p.K);
    p.has_weights = has_weights;
    check_same(p, backend, is_in_one);
    p.keeps_h = false;
    check_same(p, backend, is_in_one);
  };
  SECTION("groups of every size, and room for more rows") {
    check({{130, 0, 7, 64, 1}, 128, 144, gather, /*room=*/5}, true);
    check({{0, 66}, 256, 528, gather}, true);
    check({{3}, 384, 16, gather}, true);
  }
  SECTION("none") {
    check({{0}, 128, 144, gather}, true);
    check({{0, 0}, 128, 144, gather, /*room=*/3}, true);
    check({{}, 128, 144, gather}, true);
  }
  SECTION("sizes that no tile has") {
    check({{5, 0, 9}, 100, 144, gather}, false);
    check({{5, 0, 9}, 192, 144, gather}, false);
    check({{5, 0, 9}, 128, 150, gather}, false);
    check({{5, 0, 9}, 128, 0, gather}, false);
  }
}

TEST_CASE("fp8_swiglu_gemm has the bits of its two parts in every emulation", "[kernels][fp8_swiglu_gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const auto emulation = GENERATE(Emulation::kIdeal, Emulation::kFp64);
  CAPTURE(backend.name, int(emulation));
  Problem p({5, 0, 9}, 128, 144);
  check_same(p, backend, /*is_in_one=*/false, emulation);
}

// What the epilogue does apart: each makes some of the numbers rare, in some rows.
TEST_CASE("fp8_swiglu_gemm has the bits of its two parts for rare numbers", "[kernels][fp8_swiglu_gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const bool keeps_h = GENERATE(false, true);
  CAPTURE(backend.name, keeps_h);
  const auto make = [&](float size) {
    Problem p({70, 13}, 128, 144, /*gather=*/false, /*room=*/0, size);
    p.keeps_h = keeps_h;
    return p;
  };
  SECTION("NaN codes") {
    Problem p = make(2.0f);
    p.a[size_t(7 * p.K + 3)] = 0x7f;               // a row
    p.b[size_t((20 + p.F) * p.K + 1)] = 0xff;      // a column of up of the first group
    p.b[size_t((2 * p.F + 60) * p.K + 1)] = 0xff;  // one of the gate of the second
    check_same(p, backend, true);
  }
  SECTION("infinite sums") {
    Problem p = make(2.0f);
    for (size_t i = 0; i < 8; ++i) p.a_scale[i * 5] = 0x1p127f;
    for (float& scale : p.b_scale) scale = scale * 256.0f;
    check_same(p, backend, true);
  }
  SECTION("a limit that some are beyond") {
    Problem p = make(2.0f);
    p.limit = 3.3f;
    check_same(p, backend, true);
  }
  SECTION("gates for which exp is not finite, or zero") {
    Problem p = make(100.0f);
    check_same(p, backend, true);
    p.limit = 120.0f;
    check_same(p, backend, true);
  }
  SECTION("numbers that are flushed, and zeros") {
    Problem p = make(2.0f);
    for (int64_t k = 0; k < p.K; ++k) {
      // A column of the gate of each size, a column of zeros of up, and a row of zeros.
      p.b[size_t(3 * p.K + k)] = 0, p.b[size_t((p.F + 5) * p.K + k)] = 0, p.a[size_t(2 * p.K + k)] = 0;
      for (int64_t f = 10; f < 40; ++f) p.b[size_t(f * p.K + k)] = uint8_t(k == f ? 1 + k % 3 : 0);
    }
    p.has_weights = true;
    check_same(p, backend, true);
  }
  SECTION("the smallest and the largest scales") {
    Problem p = make(0x1p-120f);
    check_same(p, backend, true);
    p = make(0x1p62f);
    check_same(p, backend, true);
  }
}

TEST_CASE("fp8_swiglu_gemm may have blocks in pairs", "[kernels][fp8_swiglu_gemm]") {
  const bool gather = GENERATE(false, true);
  for (const Backend& backend : cuda_backends()) {
    const UseBackend use(backend);
    CAPTURE(backend.name, gather);
    const kernels::GemmClusters before = kernels::gemm_clusters();
    Problem p({0, 260, 1, 0, 159}, 256, 272, gather);
    Result single(p), pairs(p);
    kernels::set_gemm_clusters(kernels::GemmClusters::kOff);
    kernels::fp8_swiglu_gemm(single.args(p, Emulation::kHopper), here());
#ifdef OCTET_EMULATE_CUDA
    const int64_t clusters_before = emulation::clusters_run();
#endif
    kernels::set_gemm_clusters(kernels::GemmClusters::kOn);
    kernels::fp8_swiglu_gemm(pairs.args(p, Emulation::kHopper), here());
    kernels::set_gemm_clusters(before);
#ifdef OCTET_EMULATE_CUDA
    CHECK(emulation::clusters_run() == clusters_before + 2);  // of 5 multiprocessors
#endif
    CHECK(single.h_codes == pairs.h_codes);
    CHECK(single.h_scale == pairs.h_scale);
    CHECK(single.y_codes == pairs.y_codes);
    CHECK(single.y_scale == pairs.y_scale);
    CHECK(single.stats[0] == pairs.stats[0]);
    CHECK(single.stats[0].count == 3 * p.R * p.F);
  }
}

}  // namespace octet::test
