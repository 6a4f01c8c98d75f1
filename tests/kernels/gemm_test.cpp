#include "kernels/gemm.h"

#include "tests/kernels/backend.h"
#include "tests/support/numeric.h"

namespace octet::test {
namespace {

float flushed(float x) { return std::abs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

// One element of a product, summed in the order of kernels/gemm.h.
float ordered_dot(const std::vector<float>& a, const std::vector<float>& b) {
  float total = 0;
  for (size_t begin = 0; begin < a.size(); begin += size_t(kernels::kGemmKBlock)) {
    float acc = 0;
    for (size_t k = begin; k < std::min(a.size(), begin + size_t(kernels::kGemmKBlock)); ++k) {
      acc = std::fma(a[k], b[k], acc);
    }
    total = begin == 0 ? acc : total + acc;
  }
  return total;
}
float ordered_dot(const std::vector<bfloat16>& a, const std::vector<bfloat16>& b) {
  const auto at = [](const std::vector<bfloat16>& x, size_t k) { return k < x.size() ? flushed(float(x[k])) : 0.0f; };
  float total = 0;
  for (size_t begin = 0; begin < a.size(); begin += size_t(kernels::kGemmKBlock)) {
    float acc = 0;
    for (size_t k = begin; k < std::min(a.size(), begin + size_t(kernels::kGemmKBlock)); k += 2) {
      acc = flushed(std::fma(at(a, k + 1), at(b, k + 1), acc));
      acc = flushed(std::fma(at(a, k), at(b, k), acc));
    }
    total = begin == 0 ? acc : flushed(total + acc);
  }
  return total;
}

struct Groups {
  std::vector<int64_t> offsets{0};
  explicit Groups(const std::vector<int64_t>& sizes) {
    for (const int64_t rows : sizes) offsets.push_back(offsets.back() + rows);
  }
  int64_t rows() const { return offsets.back(); }
  int64_t size() const { return int64_t(offsets.size()) - 1; }
  int64_t of(int64_t row) const {
    int64_t g = 0;
    while (offsets[size_t(g + 1)] <= row) ++g;
    return g;
  }
};

std::vector<int32_t> random_rows(int64_t n, int64_t limit) {
  std::vector<int32_t> rows;
  for (int64_t i = 0; i < n; ++i) {
    rows.push_back(int32_t(RandomStream(9, "rows").below(uint64_t(limit), uint64_t(i))));
  }
  return rows;
}

template <class T>
std::vector<T> slice(const std::vector<T>& x, int64_t first, int64_t n, int64_t step = 1) {
  std::vector<T> part;
  for (int64_t i = 0; i < n; ++i) part.push_back(x[size_t(first + i * step)]);
  return part;
}

struct Options {
  bool b_is_kn = false, gather = false, accumulate = false, dense = false;
  bool aligned = false;  // the result lies on boundaries of 16 bytes
};

// Whether a product has the bits of the ordered sum: all but those of bfloat16 on a tensor core.
template <class T>
bool is_ordered(const Backend& backend) {
  return !backend.is_cuda || std::is_same_v<T, float>;
}
// How far one may be from the float64 sum of K products of numbers below 1. A tensor core cuts each of 17 terms at
// 2^-25 of the largest, and the sum at 2^-23, once in 16 products.
template <class T>
double tolerance(const Backend& backend, int64_t K) {
  const double rounding = 2 * std::sqrt(double(K + 1)) * kEpsilonF32;
  return is_ordered<T>(backend) ? rounding : rounding + double(K / 16 + 1) * (17 * 0x1p-25 + 0x1p-23);
}

// Every element has the bits of the ordered sum, where there are any, and lies near the float64 one.
template <class T, class Out>
void check_gemm(const Backend& backend, Groups groups, int64_t N, int64_t K, const Options& options) {
  const int64_t R = groups.rows(), G = groups.size(), S = options.gather ? R / 2 + 1 : R;
  auto a = uniform<T>(S * K, 1), b = uniform<T>(G * N * K, 2);
  auto rows = random_rows(R, S);
  // Columns of a wider matrix, to see that strides are kept and neighbours left alone.
  const int64_t first = options.aligned ? 8 : 1, stride = options.aligned ? (N + 23) / 8 * 8 : N + 3;
  auto wide = uniform<Out>(R * stride, 3);
  const auto before = wide;
  if (wide.empty()) wide.reserve(1);
  View c(wide.data() + (wide.empty() ? 0 : first), {R, N}, dtype_of<Out>, {}, stride);
  const Shape b_shape = options.dense ? (options.b_is_kn ? Shape{K, N} : Shape{N, K})
                                      : (options.b_is_kn ? Shape{G, K, N} : Shape{G, N, K});
  kernels::grouped_gemm({.a = view(a, {S, K}),
                         .b = view(b, b_shape),
                         .offsets = options.dense ? ConstView() : ConstView(view(groups.offsets, {G + 1})),
                         .rows = options.gather ? ConstView(view(rows, {R})) : ConstView(),
                         .c = c,
                         .b_is_kn = options.b_is_kn,
                         .accumulate = options.accumulate},
                        here());
  int64_t wrong_bits = 0, outside = 0;
  Doubles got, exact;
  for (int64_t r = 0; r < R; ++r) {
    const int64_t g = groups.of(r), from = options.gather ? rows[size_t(r)] : r;
    const auto ar = slice(a, from * K, K);
    for (int64_t n = 0; n < stride; ++n) {
      const float value = float(wide[size_t(r * stride + n)]), old = float(before[size_t(r * stride + n)]);
      if (n < first || n >= first + N) {
        outside += value != old;
        continue;
      }
      const auto bn = options.b_is_kn ? slice(b, g * K * N + n - first, K, N) : slice(b, (g * N + n - first) * K, K);
      const float sum = ordered_dot(ar, bn);
      wrong_bits += value != float(Out(options.accumulate ? old + sum : sum));
      double dot = options.accumulate ? double(old) : 0;
      for (int64_t k = 0; k < K; ++k) dot += double(ar[size_t(k)]) * double(bn[size_t(k)]);
      got.push_back(value), exact.push_back(dot);
    }
  }
  if (is_ordered<T>(backend)) CHECK(wrong_bits == 0);
  CHECK(outside == 0);
  const double stored = std::is_same_v<Out, float> ? 0 : kEpsilonBF16 / 2;
  CHECK_THAT(got, NearAll(exact, tolerance<T>(backend, K) + stored, /*floor=*/1.0));
}

template <class T>
void check_wgrad(const Backend& backend, Groups groups, int64_t N, int64_t K, bool gather, bool dense = false) {
  const int64_t R = groups.rows(), G = groups.size(), S = gather ? R / 2 + 1 : R;
  auto dy = uniform<T>(R * N, 1), x = uniform<T>(S * K, 2);
  auto rows = random_rows(R, S);
  auto dw = uniform<float>(G * N * K, 3);
  const auto before = dw;
  auto overwritten = dw;
  kernels::GroupedWgrad args{.dy = view(dy, {R, N}),
                             .x = view(x, {S, K}),
                             .offsets = dense ? ConstView() : ConstView(view(groups.offsets, {G + 1})),
                             .rows = gather ? ConstView(view(rows, {R})) : ConstView(),
                             .dw = view(dw, {G, N, K})};
  kernels::grouped_wgrad(args, here());
  args.dw = view(overwritten, {G, N, K});
  args.accumulate = false;
  kernels::grouped_wgrad(args, here());
  int64_t wrong_bits = 0;
  Doubles exact;
  for (int64_t g = 0; g < G; ++g) {
    const int64_t first = groups.offsets[size_t(g)], n_rows = groups.offsets[size_t(g + 1)] - first;
    for (int64_t n = 0; n < N; ++n) {
      const auto dyn = slice(dy, first * N + n, n_rows, N);
      for (int64_t k = 0; k < K; ++k) {
        std::vector<T> xk;
        for (int64_t r = first; r < first + n_rows; ++r) {
          xk.push_back(x[size_t((gather ? rows[size_t(r)] : r) * K + k)]);
        }
        const size_t i = size_t((g * N + n) * K + k);
        const float sum = ordered_dot(dyn, xk);
        wrong_bits += dw[i] != (n_rows == 0 ? before[i] : before[i] + sum);
        wrong_bits += overwritten[i] != sum;  // 0 for a group without rows
        double dot = before[i];
        for (size_t r = 0; r < xk.size(); ++r) dot += double(dyn[r]) * double(xk[r]);
        exact.push_back(dot);
      }
    }
  }
  if (is_ordered<T>(backend)) CHECK(wrong_bits == 0);
  CHECK_THAT(doubles(dw), NearAll(exact, tolerance<T>(backend, R), /*floor=*/1.0));
  Doubles sums = doubles(overwritten);
  for (size_t i = 0; i < sums.size(); ++i) sums[i] += before[i];
  CHECK_THAT(sums, NearAll(exact, tolerance<T>(backend, R), /*floor=*/1.0));
}

}  // namespace

TEST_CASE("grouped_gemm sums in its stated order: dense", "[kernels][gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t M = GENERATE(0, 1, 6, 7, 13), N = GENERATE(0, 1, 15, 16, 70), K = GENERATE(0, 1, 2, 31, 257);
  Options options;
  options.dense = true;
  options.b_is_kn = GENERATE(false, true);
  options.accumulate = GENERATE(false, true);
  CAPTURE(backend.name, M, N, K, options.b_is_kn, options.accumulate);
  check_gemm<float, float>(backend, Groups({M}), N, K, options);
  check_gemm<bfloat16, float>(backend, Groups({M}), N, K, options);
  if (!options.accumulate) check_gemm<float, bfloat16>(backend, Groups({M}), N, K, options);
  if (!options.accumulate) check_gemm<bfloat16, bfloat16>(backend, Groups({M}), N, K, options);
}

TEST_CASE("grouped_gemm sums in its stated order: groups, gathered rows, many blocks", "[kernels][gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const Groups groups(
      GENERATE(std::vector<int64_t>{0, 0}, std::vector<int64_t>{0, 3, 0, 20, 1, 8}, std::vector<int64_t>{390, 2}));
  Options options;
  options.b_is_kn = GENERATE(false, true);
  options.gather = GENERATE(false, true);
  CAPTURE(backend.name, groups.offsets, options.b_is_kn, options.gather);
  check_gemm<float, float>(backend, groups, 37, 300, options);
  check_gemm<bfloat16, bfloat16>(backend, groups, 37, 300, options);
  options.accumulate = true;
  check_gemm<bfloat16, float>(backend, groups, 140, 21, options);
}

TEST_CASE("a CPU adds up several blocks of k", "[kernels][gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  Options options;
  options.b_is_kn = GENERATE(false, true);
  check_gemm<bfloat16, bfloat16>(backend, Groups({3, 0, 110}), 81, 1100, options);
  options.accumulate = true;
  check_gemm<bfloat16, float>(backend, Groups({17}), 130, 1030, options);
  check_wgrad<bfloat16>(backend, Groups({5, 1100}), 19, 81, options.b_is_kn);
}

TEST_CASE("grouped_gemm fills whole tiles of a tensor core", "[kernels][gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  Options options;
  options.b_is_kn = GENERATE(false, true);
  check_gemm<bfloat16, bfloat16>(backend, Groups({150, 0, 128}), 136, 196, options);
}

// Rows of whole pieces of 16 bytes: what a GPU copies by tiles. More tiles than blocks, tails of every kind, and more
// of k than the ring has stages.
TEST_CASE("grouped_gemm copies whole tiles", "[kernels][gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  Options options;
  options.b_is_kn = GENERATE(false, true);
  options.gather = GENERATE(false, true);
  options.aligned = true;
  check_gemm<bfloat16, bfloat16>(backend, Groups({130, 0, 64, 1}), 168, 64, options);
  options.accumulate = true;
  check_gemm<bfloat16, float>(backend, Groups({70}), 130 - 18 * options.b_is_kn, 392, options);
}

TEST_CASE("grouped_wgrad sums over the rows of each group, in order", "[kernels][gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const Groups groups(
      GENERATE(std::vector<int64_t>{0}, std::vector<int64_t>{1}, std::vector<int64_t>{0, 3, 0, 270, 9}));
  const int64_t N = GENERATE(0, 1, 17, 40), K = GENERATE(0, 1, 16, 130);
  const bool gather = GENERATE(false, true);
  CAPTURE(backend.name, groups.offsets, N, K, gather);
  check_wgrad<float>(backend, groups, N, K, gather);
  check_wgrad<bfloat16>(backend, groups, N, K, gather);
}

// What a GPU copies by tiles: more tiles than blocks, tails of both axes, groups that begin at any row and end in the
// middle of a stage, and more rows than the ring has stages. Columns of 128 or of 256 at a time.
TEST_CASE("grouped_wgrad copies whole tiles", "[kernels][gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const bool gather = GENERATE(false, true);
  const int64_t K = GENERATE(136, 264);
  CAPTURE(backend.name, gather, K);
  check_wgrad<bfloat16>(backend, Groups({3, 0, 64, 1, 129}), 136, K, gather);
  check_wgrad<bfloat16>(backend, Groups({390, 2}), 72, 16, gather);
}

// On a GPU operands off the boundaries of 16 bytes take another kernel. One group of rows as they lie is a library's.
TEST_CASE("grouped_wgrad has the same bits wherever its operands lie", "[kernels][gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const auto [gather, dense] = GENERATE(table<bool, bool>({{false, false}, {true, false}, {true, true}}));
  Groups groups(dense ? std::vector<int64_t>{137} : std::vector<int64_t>{5, 64, 0, 131});
  const int64_t N = 136, K = 152, R = groups.rows(), G = groups.size();
  CAPTURE(backend.name, gather, dense);
  auto rows = random_rows(R, R);
  const auto run = [&](int64_t first, int64_t padding) {
    const auto placed = [&](int64_t columns, uint64_t seed) {
      std::vector<bfloat16> x(size_t(first + R * (columns + padding)));
      const auto values = uniform<bfloat16>(R * columns, seed);
      for (int64_t i = 0; i < R * columns; ++i) {
        x[size_t(first + i / columns * (columns + padding) + i % columns)] = values[size_t(i)];
      }
      return x;
    };
    auto dy = placed(N, 1), x = placed(K, 2);
    auto dw = uniform<float>(G * N * K, 3);
    kernels::grouped_wgrad({.dy = View(dy.data() + first, {R, N}, DType::kBFloat16, {}, N + padding),
                            .x = View(x.data() + first, {R, K}, DType::kBFloat16, {}, K + padding),
                            .offsets = dense ? ConstView() : ConstView(view(groups.offsets, {G + 1})),
                            .rows = gather ? ConstView(view(rows, {R})) : ConstView(),
                            .dw = view(dw, {G, N, K})},
                           here());
    return dw;
  };
  const bool same = run(0, 0) == run(1, 3);
  CHECK(same);
  CHECK(run(0, 8) == run(0, 0));
}

// A CPU writes such a gradient past its caches, where rows lie on boundaries of 64 bytes.
TEST_CASE("a weight gradient larger than the caches is written as any other", "[kernels][gemm]") {
  const Backend backend = GENERATE(from_range(cpu_backends()));
  const UseBackend use(backend);
  const int64_t N = 1030, K = GENERATE(1040, 1041), first = GENERATE(0, 1);
  CAPTURE(backend.name, K, first);
  Groups groups({2, 0, 1});
  auto dy = uniform<bfloat16>(groups.rows() * N, 1), x = uniform<bfloat16>(groups.rows() * K, 2);
  const auto run = [&](bool accumulate) {
    std::vector<float> memory(size_t(3 * N * K + 32), accumulate ? 0.0f : 7.0f);
    float* dw = memory.data() + first;
    while ((reinterpret_cast<uintptr_t>(dw - first) % 64) != 0) ++dw;
    kernels::grouped_wgrad({.dy = view(dy, {3, N}),
                            .x = view(x, {3, K}),
                            .offsets = view(groups.offsets, {4}),
                            .dw = View(dw, {3, N, K}, DType::kFloat32),
                            .accumulate = accumulate},
                           here());
    return std::vector<float>(dw, dw + 3 * N * K);
  };
  const bool same = run(false) == run(true);
  CHECK(same);
}

TEST_CASE("what lies behind a group's rows does not enter its weight gradient", "[kernels][gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const bool gather = GENERATE(false, true), spoils_dy = GENERATE(false, true);
  CAPTURE(backend.name, gather, spoils_dy);
  Groups groups({70, 9, 64, 1});
  const int64_t N = 136, K = 136, R = groups.rows() + 80, G = groups.size();
  std::vector<int32_t> rows(static_cast<size_t>(R));
  for (int64_t r = 0; r < R; ++r) rows[size_t(r)] = int32_t(R - 1 - r);
  // Group 1 and what no group has hold NaN.
  const auto is_spoilt = [&](int64_t r) {
    return r >= groups.rows() || (groups.offsets[1] <= r && r < groups.offsets[2]);
  };
  const auto run = [&](bool is_spoiling) {
    auto dy = uniform<bfloat16>(R * N, 1), x = uniform<bfloat16>(R * K, 2);
    for (int64_t r = 0; is_spoiling && r < R; ++r) {
      if (!is_spoilt(r)) continue;
      const bfloat16 nan(std::numeric_limits<float>::quiet_NaN());
      const int64_t x_row = gather ? rows[size_t(r)] : r;
      if (spoils_dy) std::fill_n(dy.begin() + r * N, N, nan);
      if (!spoils_dy) std::fill_n(x.begin() + x_row * K, K, nan);
    }
    std::vector<float> dw(size_t(G * N * K), 1.0f);
    kernels::grouped_wgrad({.dy = view(dy, {R, N}),
                            .x = view(x, {R, K}),
                            .offsets = view(groups.offsets, {G + 1}),
                            .rows = gather ? ConstView(view(rows, {R})) : ConstView(),
                            .dw = view(dw, {G, N, K}),
                            .accumulate = false},
                           here());
    return dw;
  };
  const std::vector<float> clean = run(false), spoilt = run(true);
  int64_t wrong = 0;
  for (int64_t i = 0; i < G * N * K; ++i) {
    const float value = spoilt[size_t(i)];
    wrong += i / (N * K) == 1 ? value == value : value != clean[size_t(i)];
  }
  CHECK(wrong == 0);
}

TEST_CASE("grouped_wgrad sums over all rows of one group", "[kernels][gemm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t R = GENERATE(0, 1, 7, 70), N = GENERATE(0, 1, 16, 40), K = GENERATE(0, 1, 17, 130);
  CAPTURE(backend.name, R, N, K);
  check_wgrad<float>(backend, Groups({R}), N, K, /*gather=*/false, /*dense=*/true);
  check_wgrad<bfloat16>(backend, Groups({R}), N, K, /*gather=*/false, /*dense=*/true);
}

TEST_CASE("a bfloat16 product takes subnormal numbers as zero and a float32 one does not", "[kernels][gemm]") {
  const UseIsa use(GENERATE(from_range(supported_isas())));
  const auto product = [](auto one, float a, float b, float c, float d) {  // a b + c d
    using T = decltype(one);
    std::vector<T> left = {T(a), T(c)}, right = {T(b), T(d)};
    std::vector<float> result = {-1.0f};
    kernels::grouped_gemm({.a = view(left, {1, 2}), .b = view(right, {1, 2}), .c = view(result, {1, 1})}, here());
    return result[0];
  };
  const float subnormal = 0x1p-130f;
  CHECK(product(0.0f, subnormal, 0x1p100f, 0.0f, 0.0f) == 0x1p-30f);
  CHECK(product(bfloat16(), subnormal, 0x1p100f, 0.0f, 0.0f) == 0.0f);
  CHECK(product(0.0f, 0x1p-70f, 0x1p-60f, 0.0f, 0.0f) == subnormal);
  CHECK(product(bfloat16(), 0x1p-70f, 0x1p-60f, 0.0f, 0.0f) == 0.0f);
  // The odd product is added first: 2^-126 - 2^-130 * 15 is subnormal and becomes zero after the second.
  CHECK(product(bfloat16(), -15 * 0x1p-70f, 0x1p-60f, 0x1p-66f, 0x1p-60f) == 0.0f);
  CHECK(product(0.0f, -15 * 0x1p-70f, 0x1p-60f, 0x1p-66f, 0x1p-60f) == subnormal);
}

TEST_CASE("bfloat16 sums keep their order where numbers pass in and out of the subnormal range", "[kernels][gemm]") {
  const Isa isa = GENERATE(from_range(supported_isas()));
  const UseIsa use(isa);
  CAPTURE(name_of(isa));
  const int64_t M = 7, N = 70, K = 259;
  // Of 2^-78 to 2^-48 with now and then a subnormal factor: products and sums lie to both sides of 2^-126.
  const auto tiny = [](int64_t n, uint64_t seed) {
    const RandomStream random(seed, "tiny");
    std::vector<bfloat16> x;
    for (uint64_t i = 0; i < uint64_t(n); ++i) {
      const int exponent = random.below(16, i, 1) == 0 ? -130 : -48 - int(random.below(31, i, 2));
      x.push_back(bfloat16(std::ldexp(random.uniform(i) * 2.0f - 1.0f, exponent)));
    }
    return x;
  };
  auto a = tiny(M * K, 1), b = tiny(N * K, 2);
  std::vector<float> c(size_t(M * N), -1.0f);
  kernels::grouped_gemm({.a = view(a, {M, K}), .b = view(b, {N, K}), .c = view(c, {M, N})}, here());
  int64_t wrong_bits = 0, zeros = 0;
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      const float got = c[size_t(m * N + n)];
      wrong_bits += got != ordered_dot(slice(a, m * K, K), slice(b, n * K, K));
      zeros += got == 0;
    }
  }
  CHECK(wrong_bits == 0);
  CHECK(zeros < M * N / 2);  // and they are not all lost
}

}  // namespace octet::test
