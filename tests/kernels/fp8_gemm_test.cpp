#include "kernels/fp8_gemm.h"

#include <limits>

#include "core/base/fp8.h"
#include "kernels/quantize.h"
#include "tests/kernels/backend.h"
#include "tests/support/numeric.h"

namespace octet::test {
namespace {

using kernels::Emulation;

int64_t blocks(int64_t n) { return (n + 127) / 128; }

// A matrix of codes with a scale for each 128 of k of each row.
struct Codes {
  std::vector<uint8_t> codes;
  std::vector<float> scale;
};
// One row, or column, of an operand: values with their codes' meaning, and the scale of each 128.
struct Line {
  std::vector<double> values;
  std::vector<float> scale;
};
Line line_of(const uint8_t* codes, int64_t K, const std::vector<float>& scale) {
  Line line;
  for (int64_t k = 0; k < K; ++k) line.values.push_back(decode(float8_e4m3{codes[k]}));
  line.scale = scale;
  return line;
}

// The sum over one block of 128 (or fewer), as each emulation forms it.
float ideal_block(const double* a, const double* b, int64_t n) {
  float p = 0;
  for (int64_t k = 0; k < n; k += 2) {
    if (k + 1 < n) p = std::fma(float(a[k + 1]), float(b[k + 1]), p);
    p = std::fma(float(a[k]), float(b[k]), p);
  }
  return p;
}

// significand * 2^exponent, the significand below 2; subnormal E4M3 numbers keep -6. Zero has no exponent to speak of.
struct Parts {
  double significand = 0;
  int exponent = -1000;
};
Parts parts_of(double x, int smallest_exponent) {
  if (x == 0) return {};
  const int exponent = std::max(std::ilogb(x), smallest_exponent);
  return {std::ldexp(x, -exponent), exponent};
}
// 32 products and c the way the tensor core adds them, in float64 on significands and exponents.
float hopper_step(const double* a, const double* b, int64_t n, float c) {
  std::vector<Parts> terms = {parts_of(c, -126)};
  for (int64_t k = 0; k < n; ++k) {
    const Parts left = parts_of(a[k], -6), right = parts_of(b[k], -6);
    if (std::isnan(a[k] * b[k])) return std::bit_cast<float>(0x7fffffff);
    terms.push_back({left.significand * right.significand, left.exponent + right.exponent});
  }
  int top = -1000;
  for (const Parts& term : terms) {
    if (term.significand != 0) top = std::max(top, term.exponent);
  }
  double sum = 0;
  for (const Parts& term : terms) {
    if (term.significand != 0) sum += std::trunc(std::ldexp(term.significand, 13 + term.exponent - top));
  }
  if (sum == 0) return 0.0f;
  const double value = std::ldexp(sum, top - 13);
  const int exponent = std::ilogb(value);
  return float(std::ldexp(std::trunc(std::ldexp(value, 13 - exponent)), exponent - 13));
}
float hopper_block(const double* a, const double* b, int64_t n) {
  float p = 0;
  for (int64_t k = 0; k < n && !std::isnan(p); k += 32) p = hopper_step(a + k, b + k, std::min<int64_t>(32, n - k), p);
  return p;
}

float dot(Emulation emulation, const Line& a, const Line& b) {
  const int64_t K = int64_t(a.values.size());
  float acc = 0;
  double wide = 0;
  for (int64_t k = 0; k < K; k += 128) {
    const int64_t n = std::min<int64_t>(128, K - k);
    const double *x = a.values.data() + k, *y = b.values.data() + k;
    const float scale = a.scale[size_t(k / 128)] * b.scale[size_t(k / 128)];
    if (emulation == Emulation::kFp64) {
      double p = 0;
      for (int64_t i = 0; i < n; ++i) p += x[i] * y[i];
      wide += p * double(scale);
    } else {
      const float p = emulation == Emulation::kIdeal ? ideal_block(x, y, n) : hopper_block(x, y, n);
      acc = std::fma(p, scale, acc);
    }
  }
  return emulation == Emulation::kFp64 ? float(wide) : acc;
}
double exact_dot(const Line& a, const Line& b, double* size) {
  double sum = 0;
  *size = 0;
  for (size_t k = 0; k < a.values.size(); ++k) {
    const double term = a.values[k] * b.values[k] * double(a.scale[k / 128]) * double(b.scale[k / 128]);
    sum += term, *size += std::abs(term);
  }
  return sum;
}

enum class Data {
  kEven,           // values of one size, as quantised activations are
  kAllCodes,       // every finite code alike: exponents far apart
  kCancelling,     // each product followed by nearly its negative
  kSubnormal,      // subnormal codes and zeros only
  kLargeThenTiny,  // the first 32 of each block huge, the others tiny: they fall off the end of the tensor core's sum
  kNan,            // a NaN code here and there
};
Codes make_codes(Data data, int64_t rows, int64_t K, int64_t rows_per_scale, uint64_t seed) {
  const RandomStream stream(seed, "codes");
  Codes m;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < K; ++k) {
      const uint64_t i = uint64_t(r * K + k);
      uint8_t code = encode_e4m3(stream.normal(i) * 64).bits;
      const uint8_t any = uint8_t(stream.below(127, i, 1) | stream.below(2, i, 2) << 7);
      if (data == Data::kAllCodes) code = any;
      if (data == Data::kSubnormal) code = any & 0x87;
      if (data == Data::kLargeThenTiny) code = k % 128 < 32 ? (any & 0x81) | 0x7c : any & 0x97;
      if (data == Data::kCancelling && seed % 2 == 1 && k % 2 == 1) {
        code = m.codes.back() ^ (stream.below(4, i, 3) == 0 ? 0x81 : 0x80);
        if ((code & 0x7f) == 0x7f) code ^= 1;
      }
      if (data == Data::kCancelling && seed % 2 == 0 && k % 2 == 1) code = m.codes.back();
      if (data == Data::kNan && stream.below(uint64_t(5 * K), i, 4) == 0) code = stream.below(2, i, 5) ? 0x7f : 0xff;
      m.codes.push_back(code);
    }
  }
  for (int64_t i = 0; i < (rows + rows_per_scale - 1) / rows_per_scale * blocks(K); ++i) {
    m.scale.push_back(std::ldexp(1.0f, int(stream.below(24, uint64_t(i), 6)) - 12));
  }
  return m;
}
std::vector<float> slice(const std::vector<float>& x, int64_t first, int64_t n) {
  return {x.begin() + first, x.begin() + first + n};
}

struct Groups {
  std::vector<int64_t> offsets{0}, block_offsets{0};
  explicit Groups(const std::vector<int64_t>& sizes) {
    for (const int64_t rows : sizes) {
      offsets.push_back(offsets.back() + rows);
      block_offsets.push_back(block_offsets.back() + blocks(rows));
    }
  }
  int64_t rows() const { return offsets.back(); }
  int64_t size() const { return int64_t(offsets.size()) - 1; }
  int64_t of(int64_t row) const {
    int64_t g = 0;
    while (offsets[size_t(g + 1)] <= row) ++g;
    return g;
  }
};

template <class T>
View bytes_view(std::vector<T>& values, Shape shape) {
  REQUIRE(int64_t(values.size()) == shape.num_elements());
  if (values.empty()) values.reserve(1);
  return View(values.data(), shape, DType::kFloat8E4M3);
}

uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
bool same(float got, float wanted) {
  return bits_of(got) == bits_of(wanted) || (std::isnan(got) && std::isnan(wanted));
}

// How far an emulation may be from the exact sum, relative to the sum of magnitudes: float32 sums of 128 terms; or 13
// bits, cut at each of the 33 terms of each of 4 steps.
double bound(Emulation emulation) { return emulation == Emulation::kHopper ? 4 * 33 * 0x1p-13 : 130 * kEpsilonF32; }

template <class T>
std::vector<T> transposed(const std::vector<T>& x, int64_t matrices, int64_t rows, int64_t cols) {
  std::vector<T> y(x.size());
  for (int64_t m = 0; m < matrices; ++m) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        y[size_t((m * cols + j) * rows + i)] = x[size_t((m * rows + i) * cols + j)];
      }
    }
  }
  return y;
}

template <class Out>
void check_gemm(Emulation emulation, Data data, Groups groups, int64_t N, int64_t K, bool gather, bool dense = false) {
  const int64_t R = groups.rows(), G = groups.size(), S = gather ? R / 2 + 1 : R;
  Codes a = make_codes(data, S, K, 1, 1), b = make_codes(data, G * N, K, 1, 2);
  b.scale = make_codes(data, G * blocks(N), K, 1, 4).scale;  // one for each 128 rows of each group
  std::vector<int32_t> rows;
  for (int64_t r = 0; r < R; ++r) rows.push_back(int32_t(RandomStream(3, "rows").below(uint64_t(S), uint64_t(r))));
  std::vector<Out> c(size_t(R * N)), c_of_kn(c.size());
  kernels::fp8_grouped_gemm(
      {.a = bytes_view(a.codes, {S, K}),
       .a_scale = view(a.scale, {S, blocks(K)}),
       .b = bytes_view(b.codes, dense ? Shape{N, K} : Shape{G, N, K}),
       .b_scale = view(b.scale, dense ? Shape{blocks(N), blocks(K)} : Shape{G, blocks(N), blocks(K)}),
       .offsets = dense ? ConstView() : ConstView(view(groups.offsets, {G + 1})),
       .rows = gather ? ConstView(view(rows, {R})) : ConstView(),
       .c = view(c, {R, N}),
       .emulation = emulation},
      here());
  auto b_kn = transposed(b.codes, G, N, K);
  auto b_kn_scale = transposed(b.scale, G, blocks(N), blocks(K));
  kernels::Fp8GroupedGemm of_kn{.a = bytes_view(a.codes, {S, K}),
                                .a_scale = view(a.scale, {S, blocks(K)}),
                                .b = bytes_view(b_kn, {G, K, N}),
                                .b_scale = view(b_kn_scale, {G, blocks(K), blocks(N)}),
                                .offsets = view(groups.offsets, {G + 1}),
                                .rows = gather ? ConstView(view(rows, {R})) : ConstView(),
                                .c = view(c_of_kn, {R, N}),
                                .b_is_kn = true,
                                .emulation = emulation};
  kernels::fp8_grouped_gemm(of_kn, here());
  // With b transposed too; where that is read, b itself is not.
  std::vector<Out> c_of_both(c.size());
  std::vector<uint8_t> no_codes(b_kn.size(), 0x7f);
  if (kernels::reads_b_transposed(device_here().type, emulation, K)) of_kn.b = bytes_view(no_codes, {G, K, N});
  of_kn.b_transposed = bytes_view(b.codes, {G, N, K}), of_kn.c = view(c_of_both, {R, N});
  kernels::fp8_grouped_gemm(of_kn, here());
  int64_t wrong = 0, far = 0;
  for (int64_t r = 0; r < R; ++r) {
    const int64_t from = gather ? rows[size_t(r)] : r, g = groups.of(r);
    const Line left = line_of(a.codes.data() + from * K, K, slice(a.scale, from * blocks(K), blocks(K)));
    for (int64_t n = 0; n < N; ++n) {
      const Line right = line_of(b.codes.data() + (g * N + n) * K, K,
                                 slice(b.scale, (g * blocks(N) + n / 128) * blocks(K), blocks(K)));
      const float got = float(c[size_t(r * N + n)]), wanted = float(Out(dot(emulation, left, right)));
      wrong += !same(got, wanted) + !same(float(c_of_kn[size_t(r * N + n)]), wanted);
      wrong += !same(float(c_of_both[size_t(r * N + n)]), wanted);
      double size;
      const double exact = exact_dot(left, right, &size);
      const double stored = std::is_same_v<Out, float> ? 0 : kEpsilonBF16;
      if (data != Data::kNan) far += !(std::abs(got - exact) <= (bound(emulation) + stored) * size);
      if (data == Data::kNan) far += std::isnan(exact) != std::isnan(got);
      if (data == Data::kNan && std::isnan(exact) && std::is_same_v<Out, float> && emulation == Emulation::kHopper) {
        far += bits_of(got) != 0x7fffffffu;
      }
    }
  }
  CHECK(wrong == 0);
  CHECK(far == 0);
}

void check_wgrad(Emulation emulation, Data data, Groups groups, int64_t N, int64_t K, bool by_tiles) {
  const int64_t P = 128 * groups.block_offsets.back(), G = groups.size(), lines = by_tiles ? 128 : 1;
  Codes dy = make_codes(data, N, P, lines, 1), x = make_codes(data, K, P, lines, 2);
  for (int64_t g = 0; g < G; ++g) {  // the padding behind each group is code 0
    const int64_t rows = groups.offsets[size_t(g + 1)] - groups.offsets[size_t(g)];
    for (int64_t p = 128 * groups.block_offsets[size_t(g)] + rows; p < 128 * groups.block_offsets[size_t(g + 1)]; ++p) {
      for (int64_t n = 0; n < N; ++n) dy.codes[size_t(n * P + p)] = 0;
      for (int64_t k = 0; k < K; ++k) x.codes[size_t(k * P + p)] = 0;
    }
  }
  auto dw = uniform<float>(G * N * K, 3);
  auto overwritten = dw;
  const auto before = dw;
  const int64_t n_scales = (N + lines - 1) / lines, k_scales = (K + lines - 1) / lines;
  auto dy_codes = column_codes_of(transposed(dy.codes, 1, N, P), P, N);
  auto x_codes = column_codes_of(transposed(x.codes, 1, K, P), P, K);
  auto dy_scale = transposed(dy.scale, 1, n_scales, P / 128), x_scale = transposed(x.scale, 1, k_scales, P / 128);
  kernels::Fp8GroupedWgrad args{.dy = bytes_view(dy_codes, kernels::column_codes_shape(P, N, device_here())),
                                .dy_scale = view(dy_scale, {P / 128, n_scales}),
                                .x = bytes_view(x_codes, kernels::column_codes_shape(P, K, device_here())),
                                .x_scale = view(x_scale, {P / 128, k_scales}),
                                .offsets = view(groups.offsets, {G + 1}),
                                .block_offsets = view(groups.block_offsets, {G + 1}),
                                .dw = view(dw, {G, N, K}),
                                .by_tiles = by_tiles,
                                .emulation = emulation};
  kernels::fp8_grouped_wgrad(args, here());
  args.dw = view(overwritten, {G, N, K});
  args.accumulate = false;
  kernels::fp8_grouped_wgrad(args, here());
  int64_t wrong = 0;
  for (int64_t g = 0; g < G; ++g) {
    const int64_t first = groups.block_offsets[size_t(g)], n_blocks = groups.block_offsets[size_t(g + 1)] - first;
    for (int64_t n = 0; n < N; ++n) {
      const Line left = line_of(dy.codes.data() + n * P + 128 * first, 128 * n_blocks,
                                slice(dy.scale, n / lines * (P / 128) + first, n_blocks));
      for (int64_t k = 0; k < K; ++k) {
        const Line right = line_of(x.codes.data() + k * P + 128 * first, 128 * n_blocks,
                                   slice(x.scale, k / lines * (P / 128) + first, n_blocks));
        const size_t i = size_t((g * N + n) * K + k);
        const float sum = n_blocks == 0 ? 0.0f : dot(emulation, left, right);
        wrong += !same(dw[i], n_blocks == 0 ? before[i] : before[i] + sum);
        wrong += !same(overwritten[i], 0.0f + sum);  // a group without rows leaves zeros
      }
    }
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("fp8_grouped_gemm has the bits of its emulation: shapes", "[kernels][fp8_gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const auto emulation = GENERATE(Emulation::kIdeal, Emulation::kHopper, Emulation::kFp64);
  const int64_t M = GENERATE(0, 1, 6, 9), N = GENERATE(0, 1, 16, 131), K = GENERATE(0, 1, 31, 128, 300);
  CAPTURE(backend.name, int(emulation), M, N, K);
  check_gemm<float>(emulation, Data::kEven, Groups({M}), N, K, /*gather=*/false, /*dense=*/true);
  check_gemm<bfloat16>(emulation, Data::kAllCodes, Groups({M}), N, K, /*gather=*/false);
}

TEST_CASE("fp8_grouped_gemm has the bits of its emulation: groups and hostile data", "[kernels][fp8_gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const auto emulation = GENERATE(Emulation::kIdeal, Emulation::kHopper, Emulation::kFp64);
  const auto data =
      GENERATE(Data::kEven, Data::kAllCodes, Data::kCancelling, Data::kSubnormal, Data::kLargeThenTiny, Data::kNan);
  const bool gather = GENERATE(false, true);
  CAPTURE(backend.name, int(emulation), int(data), gather);
  check_gemm<float>(emulation, data, Groups({0, 3, 0, 20, 1}), 19, 390, gather);
  check_gemm<bfloat16>(emulation, data, Groups({0, 0}), 19, 390, gather);
}

TEST_CASE("a CPU adds up several blocks of codes along k", "[kernels][fp8_gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  check_gemm<bfloat16>(Emulation::kIdeal, Data::kAllCodes, Groups({3, 0, 110}), 81, 1100, /*gather=*/true);
  check_gemm<float>(Emulation::kIdeal, Data::kNan, Groups({17}), 130, 1030, /*gather=*/false);
  check_wgrad(Emulation::kIdeal, Data::kAllCodes, Groups({5, 1100}), 19, 81, /*by_tiles=*/false);
}

TEST_CASE("fp8_grouped_gemm fills whole tiles of a tensor core", "[kernels][fp8_gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  check_gemm<bfloat16>(Emulation::kHopper, Data::kAllCodes, Groups({150, 0, 128}), 136, 260, /*gather=*/false);
}

// K a multiple of 16: what a GPU copies by whole tiles, of 256 columns and of 128. More tiles than blocks, tails of
// every kind, and more of k than the ring has stages.
TEST_CASE("fp8_grouped_gemm copies whole tiles", "[kernels][fp8_gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const bool gather = GENERATE(false, true);
  CAPTURE(backend.name, gather);
  check_gemm<bfloat16>(Emulation::kHopper, Data::kAllCodes, Groups({130, 0, 64, 1}), 250, 144, gather);
  check_gemm<bfloat16>(Emulation::kHopper, Data::kEven, Groups({0, 66}), 136, 528, gather);
  check_gemm<float>(Emulation::kHopper, Data::kNan, Groups({0, 3, 70}), 100, 784, gather);
}

TEST_CASE("fp8_grouped_wgrad has the bits of its emulation", "[kernels][fp8_gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const auto emulation = GENERATE(Emulation::kIdeal, Emulation::kHopper, Emulation::kFp64);
  const Groups groups(GENERATE(std::vector<int64_t>{0}, std::vector<int64_t>{1, 0, 130, 0, 256}));
  const auto data = GENERATE(Data::kEven, Data::kAllCodes, Data::kNan);
  const bool by_tiles = GENERATE(false, true);
  CAPTURE(backend.name, int(emulation), int(data), groups.offsets, by_tiles);
  check_wgrad(emulation, data, groups, 7, 18, by_tiles);
  check_wgrad(emulation, data, groups, 1, 131, by_tiles);
  check_wgrad(emulation, data, groups, 0, 5, by_tiles);
  check_wgrad(emulation, data, groups, 5, 0, by_tiles);
}

// Tiles of 256 columns and of 128 on a GPU: more of them than blocks, tails of every kind, and groups that have more
// blocks of rows than the ring has stages, one, and none.
TEST_CASE("fp8_grouped_wgrad fills whole tiles of a tensor core", "[kernels][fp8_gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const bool by_tiles = GENERATE(false, true);
  CAPTURE(backend.name, by_tiles);
  check_wgrad(Emulation::kHopper, Data::kEven, Groups({130, 0, 7}), 136, 250, by_tiles);
  check_wgrad(Emulation::kHopper, Data::kAllCodes, Groups({0, 900, 0}), 66, 132, by_tiles);
}

// A CPU packs 96 rows of dy at a time, two register tiles out of sixteen, and x in 64 columns.
TEST_CASE("fp8_grouped_wgrad packs rows and columns of every number", "[kernels][fp8_gemm]") {
  const Backend backend = GENERATE(from_range(cpu_backends()));
  const UseBackend use(backend);
  const int64_t N = GENERATE(15, 16, 23, 96, 97, 111, 113, 198), K = GENERATE(63, 64, 65, 192);
  CAPTURE(backend.name, N, K);
  check_wgrad(Emulation::kIdeal, Data::kAllCodes, Groups({129, 0, 3}), N, K, /*by_tiles=*/false);
}

// A CPU writes such a gradient past its caches, where rows lie on boundaries of 64 bytes.
TEST_CASE("a weight gradient larger than the caches is written as any other: FP8", "[kernels][fp8_gemm]") {
  const Backend backend = GENERATE(from_range(cpu_backends()));
  const UseBackend use(backend);
  const int64_t N = 1030, K = GENERATE(1040, 1041), first = GENERATE(0, 1);
  CAPTURE(backend.name, K, first);
  Groups groups({2, 0, 1});
  Codes dy = make_codes(Data::kEven, 2 * 128, N, 128, 1), x = make_codes(Data::kEven, 2 * 128, K, 128, 2);
  auto dy_scale = uniform<float>(2 * N, 3), x_scale = uniform<float>(2 * K, 4);
  const auto run = [&](bool accumulate) {
    std::vector<float> memory(size_t(3 * N * K + 32), accumulate ? 0.0f : 7.0f);
    float* dw = memory.data() + first;
    while ((reinterpret_cast<uintptr_t>(dw - first) % 64) != 0) ++dw;
    kernels::fp8_grouped_wgrad({.dy = bytes_view(dy.codes, {2 * 128, N}),
                                .dy_scale = view(dy_scale, {2, N}),
                                .x = bytes_view(x.codes, {2 * 128, K}),
                                .x_scale = view(x_scale, {2, K}),
                                .offsets = view(groups.offsets, {4}),
                                .block_offsets = view(groups.block_offsets, {4}),
                                .dw = View(dw, {3, N, K}, DType::kFloat32),
                                .accumulate = accumulate,
                                .emulation = Emulation::kIdeal},
                               here());
    return std::vector<float>(dw, dw + 3 * N * K);
  };
  const bool same = run(false) == run(true);
  CHECK(same);
}

TEST_CASE("the tensor core's sum loses what the reference says it loses", "[kernels][fp8_gemm]") {
  const UseBackend use(GENERATE(from_range(backends())));
  // 256 once and 31 times 2^-6: each small product lies below 2^(8-13), and all of them are cut; in float32 none is.
  std::vector<uint8_t> a(32, encode_e4m3(0x1p-6f).bits), ones(32, encode_e4m3(1.0f).bits);
  a[0] = encode_e4m3(256.0f).bits;
  std::vector<float> scale = {1.0f};
  const auto product = [&](Emulation emulation) {
    std::vector<float> c = {-1.0f};
    kernels::fp8_grouped_gemm({.a = bytes_view(a, {1, 32}),
                               .a_scale = view(scale, {1, 1}),
                               .b = bytes_view(ones, {1, 32}),
                               .b_scale = view(scale, {1, 1}),
                               .c = view(c, {1, 1}),
                               .emulation = emulation},
                              here());
    return c[0];
  };
  CHECK(product(Emulation::kHopper) == 256.0f);
  CHECK(product(Emulation::kIdeal) == 256.0f + 31 * 0x1p-6f);
  CHECK(product(Emulation::kFp64) == 256.0f + 31 * 0x1p-6f);
  // A zero beside a large number does not push the others off: the exponent of a zero counts for nothing.
  a[0] = 0;
  ones[0] = encode_e4m3(448.0f).bits;
  CHECK(product(Emulation::kHopper) == 31 * 0x1p-6f);
}

}  // namespace octet::test
