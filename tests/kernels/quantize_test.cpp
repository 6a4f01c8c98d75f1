#include "kernels/requantize_tiles.h"

#include <limits>
#include <memory>

#include "core/base/fp8.h"
#include "tests/kernels/backend.h"
#include "tests/support/numeric.h"

namespace octet::test {
namespace {

using kernels::QuantizeStats;

// Random numbers whose size varies much from one to the next, so that blocks hold subnormal codes and zeros; and, where
// `hostile`, blocks with NaN, infinities, nothing but zeros, subnormal floats and very large ones.
template <class T>
std::vector<T> inputs(int64_t n, uint64_t seed, bool hostile) {
  const RandomStream stream(seed, "test");
  std::vector<T> x(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t u = uint64_t(i);
    float value = stream.normal(u) * std::ldexp(1.0f, -int(stream.below(20, u, 1)));
    if (stream.below(16, u, 2) == 0) value = stream.below(2, u, 3) ? 0.0f : -0.0f;
    if (hostile) {
      const uint64_t kind = stream.below(7, u / 100, 4);
      if (kind == 0) value = 0.0f;
      if (kind == 1) value *= 0x1p-130f;
      if (kind == 2 && i % 5 == 0) value = std::numeric_limits<float>::quiet_NaN();
      if (kind == 3 && i % 7 == 0) value = i % 2 ? INFINITY : -INFINITY;
      if (kind == 4) value = i % 3 ? 0x1.6p127f : value;
      if (kind == 5) value = i % 2 ? INFINITY : std::numeric_limits<float>::quiet_NaN();
    }
    x[size_t(i)] = T(value);
  }
  return x;
}

// A matrix of float32, cut into blocks of `height` by `width` and quantised by plain loops.
struct Quantised {
  std::vector<uint8_t> codes;  // [R, C]
  std::vector<float> scale;    // [ceil(R/height), ceil(C/width)]
  QuantizeStats stats;
};
Quantised reference(const std::vector<float>& x, int64_t R, int64_t C, int64_t height, int64_t width) {
  Quantised q;
  q.codes.resize(x.size());
  for (int64_t r0 = 0; r0 < R; r0 += height) {
    for (int64_t c0 = 0; c0 < C; c0 += width) {
      const auto each = [&](auto&& f) {
        for (int64_t r = r0; r < std::min(R, r0 + height); ++r) {
          for (int64_t c = c0; c < std::min(C, c0 + width); ++c) f(size_t(r * C + c));
        }
      };
      float amax = 0;
      each([&](size_t i) {
        if (std::isfinite(x[i])) amax = std::max(amax, std::abs(x[i]));
      });
      const float scale = power_of_two_scale(amax);
      q.scale.push_back(scale);
      each([&](size_t i) {
        q.codes[i] = encode_e4m3(x[i] * (1 / scale)).bits;
        q.stats.count += 1;
        q.stats.non_finite += !std::isfinite(x[i]);
        q.stats.flushed += x[i] != 0 && (q.codes[i] & 0x7f) == 0;
      });
    }
  }
  return q;
}

template <class T>
std::vector<float> floats(const std::vector<T>& x) {
  std::vector<float> wide;
  for (const T& value : x) wide.push_back(float(value));
  return wide;
}
int64_t blocks(int64_t n) { return (n + 127) / 128; }

View codes_view(std::vector<uint8_t>& codes, Shape shape) {
  REQUIRE(int64_t(codes.size()) == shape.num_elements());
  if (codes.empty()) codes.reserve(1);
  return View(codes.data(), shape, DType::kFloat8E4M3);
}
void check_stats(const QuantizeStats& got, const QuantizeStats& wanted) {
  CHECK(got.count == wanted.count);
  CHECK(got.flushed == wanted.flushed);
  CHECK(got.saturated == wanted.saturated);
  CHECK(got.non_finite == wanted.non_finite);
}

template <class T>
void check_rows(int64_t R, int64_t C, bool hostile) {
  auto x = inputs<T>(R * C, 1, hostile);
  std::vector<uint8_t> codes(x.size());
  std::vector<float> scale(size_t(R * blocks(C)));
  const auto stats_memory = std::make_unique<QuantizeStats>();
  QuantizeStats& stats = *stats_memory;
  kernels::quantize_rows(
      {.x = view(x, {R, C}), .codes = codes_view(codes, {R, C}), .scale = view(scale, {R, blocks(C)}), .stats = &stats},
      here());
  const Quantised want = reference(floats(x), R, C, 1, 128);
  CHECK(codes == want.codes);
  CHECK(scale == want.scale);
  check_stats(stats, want.stats);

  std::vector<T> back(x.size());
  kernels::dequantize_rows(
      {.codes = codes_view(codes, {R, C}), .scale = view(scale, {R, blocks(C)}), .x = view(back, {R, C})}, here());
  int64_t wrong = 0;
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t c = 0; c < C; ++c) {
      const size_t i = size_t(r * C + c);
      const float s = scale[size_t(r * blocks(C) + c / 128)];
      const float value = decode(float8_e4m3{codes[i]}) * s, got = float(back[i]), given = float(x[i]);
      wrong += !(std::isnan(value) ? std::isnan(got) : got == float(T(value)));
      // E4M3 rounds within 2^-4 relative, and within half of its smallest number, 2^-10, of the scale.
      if (std::isfinite(given))
        wrong += !(std::abs(double(value) - given) <= std::max(0x1p-4 * std::abs(given), 0x1p-10 * s));
    }
  }
  CHECK(wrong == 0);
}

// Groups of rows, one of them empty, and how many blocks begin before each.
struct Groups {
  std::vector<int64_t> offsets{0}, block_offsets{0};
  explicit Groups(const std::vector<int64_t>& sizes) {
    for (const int64_t rows : sizes) {
      offsets.push_back(offsets.back() + rows);
      block_offsets.push_back(block_offsets.back() + blocks(rows));
    }
  }
  int64_t rows() const { return offsets.back(); }
  int64_t num_blocks() const { return block_offsets.back(); }
  int64_t size() const { return int64_t(offsets.size()) - 1; }
};

// What quantize_columns must give for x [R, C].
Quantised column_reference(const std::vector<float>& x, int64_t C, const Groups& groups) {
  const int64_t P = 128 * groups.num_blocks();
  Quantised all;  // codes [P, C], scale [P/128, C]
  all.codes.assign(size_t(P * C), 0);
  all.scale.resize(size_t(C * P / 128));
  for (size_t g = 0; g + 1 < groups.offsets.size(); ++g) {
    const int64_t begin = groups.offsets[g], rows = groups.offsets[g + 1] - begin;
    const std::vector<float> part(x.begin() + begin * C, x.begin() + (begin + rows) * C);
    const Quantised q = reference(part, rows, C, 128, 1);
    std::copy(q.codes.begin(), q.codes.end(), all.codes.begin() + 128 * groups.block_offsets[g] * C);
    std::copy(q.scale.begin(), q.scale.end(), all.scale.begin() + groups.block_offsets[g] * C);
    all.stats.count += q.stats.count;
    all.stats.flushed += q.stats.flushed;
    all.stats.non_finite += q.stats.non_finite;
  }
  return all;
}

template <class T>
void check_columns(Groups groups, int64_t C, bool hostile) {
  const int64_t R = groups.rows(), P = 128 * groups.num_blocks(), G = groups.size();
  auto x = inputs<T>(R * C, 2, hostile);
  std::vector<uint8_t> codes(size_t(P * C), 0xaa), row_codes(x.size(), 0xaa);
  std::vector<float> scale(size_t(C * P / 128), -1.0f), row_scale(size_t(R * blocks(C)), -1.0f);
  const auto stats_memory = std::make_unique<QuantizeStats>();
  QuantizeStats& stats = *stats_memory;
  const auto row_stats_memory = std::make_unique<QuantizeStats>();
  QuantizeStats& row_stats = *row_stats_memory;
  kernels::QuantizeColumns args{.x = view(x, {R, C}),
                                .offsets = view(groups.offsets, {G + 1}),
                                .block_offsets = view(groups.block_offsets, {G + 1}),
                                .codes = codes_view(codes, kernels::column_codes_shape(P, C, device_here())),
                                .scale = view(scale, {P / 128, C}),
                                .stats = &stats};
  kernels::quantize_columns(args, here());
  const Quantised want = column_reference(floats(x), C, groups);
  CHECK(rows_of_column_codes(codes, P, C) == want.codes);
  CHECK(scale == want.scale);
  check_stats(stats, want.stats);
  // Rows in the same pass, with nobody counting the columns.
  args.stats = nullptr;
  args.row_codes = codes_view(row_codes, {R, C});
  args.row_scale = view(row_scale, {R, blocks(C)});
  args.row_stats = &row_stats;
  kernels::quantize_columns(args, here());
  const Quantised want_rows = reference(floats(x), R, C, 1, 128);
  CHECK(rows_of_column_codes(codes, P, C) == want.codes);
  CHECK(row_codes == want_rows.codes);
  CHECK(row_scale == want_rows.scale);
  check_stats(row_stats, want_rows.stats);

  // Rows read through a list: in any order, and more than once.
  const int64_t S = std::max<int64_t>(1, R / 2);
  auto from = inputs<T>(S * C, 2, hostile);
  std::vector<int32_t> source;
  std::vector<float> gathered;
  for (int64_t r = 0; r < R; ++r) {
    source.push_back(int32_t((r * 7 + 3) % S));
    for (int64_t c = 0; c < C; ++c) gathered.push_back(float(from[size_t(source.back() * C + c)]));
  }
  args.x = view(from, {S, C});
  args.rows = view(source, {R});
  args.row_codes = args.row_scale = View();
  args.stats = &stats, args.row_stats = nullptr;
  stats = {};
  kernels::quantize_columns(args, here());
  const Quantised want_gathered = column_reference(gathered, C, groups);
  CHECK(rows_of_column_codes(codes, P, C) == want_gathered.codes);
  CHECK(scale == want_gathered.scale);
  check_stats(stats, want_gathered.stats);
}

void check_requantize(Groups groups, int64_t C, bool gather, bool hostile) {
  const int64_t R = groups.rows(), P = 128 * groups.num_blocks(), G = groups.size(), S = gather ? R / 2 + 1 : R;
  const Quantised saved = reference(inputs<float>(S * C, 3, hostile), S, C, 1, 128);
  auto codes = saved.codes;
  auto scale = saved.scale;
  std::vector<int32_t> rows;
  std::vector<float> x;
  const RandomStream stream(4, "test");
  for (int64_t r = 0; r < R; ++r) {
    rows.push_back(int32_t(gather ? stream.below(uint64_t(S), uint64_t(r)) : uint64_t(r)));
    for (int64_t c = 0; c < C; ++c) {
      x.push_back(decode(float8_e4m3{codes[size_t(rows.back() * C + c)]}) *
                  scale[size_t(rows.back() * blocks(C) + c / 128)]);
    }
  }
  std::vector<uint8_t> out_codes(size_t(C * P), 0xaa);
  std::vector<float> out_scale(size_t(C * P / 128), -1.0f);
  const auto stats_memory = std::make_unique<QuantizeStats>();
  QuantizeStats& stats = *stats_memory;
  kernels::requantize_columns({.codes = codes_view(codes, {S, C}),
                               .scale = view(scale, {S, blocks(C)}),
                               .rows = gather ? ConstView(view(rows, {R})) : ConstView(),
                               .offsets = view(groups.offsets, {G + 1}),
                               .block_offsets = view(groups.block_offsets, {G + 1}),
                               .out_codes = codes_view(out_codes, kernels::column_codes_shape(P, C, device_here())),
                               .out_scale = view(out_scale, {P / 128, C}),
                               .stats = &stats},
                              here());
  const Quantised want = column_reference(x, C, groups);
  CHECK(rows_of_column_codes(out_codes, P, C) == want.codes);
  CHECK(out_scale == want.scale);
  check_stats(stats, want.stats);
}

// The tiles of codes' rows, by plain loops in float64. NaN codes of both signs, and rows and tiles of zeros, are there.
void check_tiles(Groups groups, int64_t C, bool gather, bool hostile) {
  const int64_t R = groups.rows(), P = 128 * groups.num_blocks(), G = groups.size(), S = gather ? R / 2 + 1 : R;
  Quantised saved = reference(inputs<float>(S * C, 3, hostile), S, C, 1, 128);
  const RandomStream stream(4, "test");
  for (int64_t r = 0; r < S; ++r) {
    // Tokens whose sizes are far apart, and some that are 0: their scale is 1.
    const bool is_zero = stream.below(5, uint64_t(r), 1) == 0 || r / 128 % 4 == 2;
    for (int64_t b = 0; b < blocks(C); ++b) {
      float& scale = saved.scale[size_t(r * blocks(C) + b)];
      if (!hostile) scale = std::ldexp(1.0f, -20 - int(stream.below(24, uint64_t(r), 2)));
      if (is_zero) scale = 1.0f;
    }
    for (int64_t c = 0; is_zero && c < C; ++c) saved.codes[size_t(r * C + c)] = c % 2 == 0 ? 0 : 0x80;
    if (hostile && r % 50 == 7) saved.codes[size_t(r * C)] = 0xff;
  }
  std::vector<int32_t> rows;
  for (int64_t r = 0; r < R; ++r) {
    rows.push_back(int32_t(gather ? stream.below(uint64_t(S), uint64_t(r)) : uint64_t(r)));
  }
  std::vector<uint8_t> out_codes(size_t(C * P), 0xaa);
  std::vector<float> out_scale(size_t(blocks(C) * P / 128), -1.0f);
  const auto stats_memory = std::make_unique<QuantizeStats>();
  QuantizeStats& stats = *stats_memory;
  kernels::RequantizeTiles args{.codes = codes_view(saved.codes, {S, C}),
                                .scale = view(saved.scale, {S, blocks(C)}),
                                .rows = gather ? ConstView(view(rows, {R})) : ConstView(),
                                .offsets = view(groups.offsets, {G + 1}),
                                .block_offsets = view(groups.block_offsets, {G + 1}),
                                .out_codes = codes_view(out_codes, kernels::column_codes_shape(P, C, device_here())),
                                .out_scale = view(out_scale, {P / 128, blocks(C)}),
                                .stats = &stats};
  kernels::requantize_tiles(args, here());
  const std::vector<uint8_t> counted = out_codes;
  std::fill(out_codes.begin(), out_codes.end(), uint8_t(0xaa));
  args.stats = nullptr;
  kernels::requantize_tiles(args, here());
  CHECK(out_codes == counted);
  const std::vector<uint8_t> got = rows_of_column_codes(out_codes, P, C);
  QuantizeStats want_stats;
  int64_t wrong_codes = 0, wrong_scales = 0;
  for (size_t g = 0; g + 1 < groups.offsets.size(); ++g) {
    for (int64_t b = groups.block_offsets[g]; b < groups.block_offsets[g + 1]; ++b) {
      const int64_t first = groups.offsets[g] + 128 * (b - groups.block_offsets[g]);
      const int64_t there = std::min<int64_t>(128, groups.offsets[g + 1] - first);
      for (int64_t cb = 0; cb < blocks(C); ++cb) {
        const auto code = [&](int64_t r, int64_t c) { return saved.codes[size_t(rows[size_t(first + r)] * C + c)]; };
        const auto scale = [&](int64_t r) {
          return double(saved.scale[size_t(rows[size_t(first + r)] * blocks(C) + cb)]);
        };
        const int64_t begin = 128 * cb, end = std::min(C, begin + 128);
        double tile = 0;
        for (int64_t r = 0; r < there; ++r) {
          for (int64_t c = begin; c < end; ++c) {
            if ((code(r, c) & 0x7f) != 0) tile = std::max(tile, scale(r));
          }
        }
        if (tile == 0) tile = 1;
        wrong_scales += double(out_scale[size_t(b * blocks(C) + cb)]) != tile;
        for (int64_t r = 0; r < 128; ++r) {
          for (int64_t c = begin; c < end; ++c) {
            uint8_t want = 0;
            if (r < there) {
              const double value = double(decode(float8_e4m3{code(r, c)})) * (scale(r) / tile);
              want = encode_e4m3(float(value)).bits;
              want_stats.count += 1;
              want_stats.non_finite += std::isnan(value);
              want_stats.flushed += (code(r, c) & 0x7f) != 0 && (want & 0x7f) == 0;
            }
            wrong_codes += got[size_t((128 * b + r) * C + c)] != want;
          }
        }
      }
    }
  }
  CHECK(wrong_codes == 0);
  CHECK(wrong_scales == 0);
  check_stats(stats, want_stats);
}

template <class T>
void check_blocks(int64_t G, int64_t N, int64_t K, bool hostile) {
  auto x = inputs<T>(G * N * K, 5, hostile);
  std::vector<uint8_t> codes(x.size());
  std::vector<float> scale(size_t(G * blocks(N) * blocks(K)));
  const auto stats_memory = std::make_unique<QuantizeStats>();
  QuantizeStats& stats = *stats_memory;
  kernels::quantize_blocks({.x = view(x, {G, N, K}),
                            .codes = codes_view(codes, {G, N, K}),
                            .scale = view(scale, {G, blocks(N), blocks(K)}),
                            .stats = &stats},
                           here());
  const std::vector<float> wide = floats(x);
  QuantizeStats want_stats;
  for (int64_t g = 0; g < G; ++g) {
    const std::vector<float> part(wide.begin() + g * N * K, wide.begin() + (g + 1) * N * K);
    const Quantised want = reference(part, N, K, 128, 128);
    int64_t wrong = 0;
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t k = 0; k < K; ++k) {
        const uint8_t code = want.codes[size_t(n * K + k)];
        wrong += codes[size_t((g * N + n) * K + k)] != code;
      }
    }
    for (int64_t n = 0; n < blocks(N); ++n) {
      for (int64_t k = 0; k < blocks(K); ++k) {
        const float value = want.scale[size_t(n * blocks(K) + k)];
        wrong += scale[size_t((g * blocks(N) + n) * blocks(K) + k)] != value;
      }
    }
    CHECK(wrong == 0);
    want_stats.count += want.stats.count;
    want_stats.flushed += want.stats.flushed;
    want_stats.non_finite += want.stats.non_finite;
  }
  check_stats(stats, want_stats);
}

}  // namespace

TEST_CASE("the vector cast gives the code of the scalar cast for every bfloat16 number", "[kernels][quantize]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  const bool as_bf16 = GENERATE(false, true);
  // Exponents of the scale: 0, and both sides of those between which bfloat16 is cast by its bits.
  const int e = GENERATE(0, -101, -100, 113, 114, 119);
  CAPTURE(as_bf16, e);
  // A block whose amax is 448 * 2^e has scale 2^e: that, then 127 patterns.
  const float amax = std::ldexp(448.0f, e);
  std::vector<uint16_t> patterns;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = std::bit_cast<float>(bits << 16);
    if (std::isfinite(value) && std::abs(value) > amax) continue;
    if (patterns.size() % 128 == 0) patterns.push_back(bfloat16(amax).bits);
    patterns.push_back(uint16_t(bits));
  }
  patterns.resize((patterns.size() + 127) / 128 * 128);
  const int64_t R = int64_t(patterns.size()) / 128;
  // The blocks as rows, and as columns.
  std::vector<float> x, columns(patterns.size());
  std::vector<bfloat16> x16(patterns.size()), columns16(patterns.size());
  std::vector<uint8_t> want, want_columns(patterns.size());
  for (size_t i = 0; i < patterns.size(); ++i) {
    const size_t at = i % 128 * size_t(R) + i / 128;
    x16[i].bits = columns16[at].bits = patterns[i];
    x.push_back(float(x16[i])), columns[at] = float(x16[i]);
    want.push_back(encode_e4m3(float(std::ldexp(double(x.back()), -e))).bits), want_columns[at] = want.back();
  }
  std::vector<uint8_t> codes(x.size());
  std::vector<float> scale(static_cast<size_t>(R));
  kernels::quantize_rows({.x = as_bf16 ? view(x16, {R, 128}) : view(x, {R, 128}),
                          .codes = codes_view(codes, {R, 128}),
                          .scale = view(scale, {R, 1}),
                          .stats = nullptr},
                         here());
  CHECK(codes == want);
  CHECK(scale == std::vector<float>(size_t(R), std::ldexp(1.0f, e)));

  std::vector<int64_t> offsets = {0, 128}, block_offsets = {0, 1};
  std::vector<uint8_t> column_codes(x.size());
  std::fill(scale.begin(), scale.end(), 0.0f);
  kernels::quantize_columns({.x = as_bf16 ? view(columns16, {128, R}) : view(columns, {128, R}),
                             .offsets = view(offsets, {2}),
                             .block_offsets = view(block_offsets, {2}),
                             .codes = codes_view(column_codes, kernels::column_codes_shape(128, R, device_here())),
                             .scale = view(scale, {1, R}),
                             .stats = nullptr},
                            here());
  CHECK(column_codes == (device_here().is_cpu() ? want_columns : want));
  CHECK(scale == std::vector<float>(size_t(R), std::ldexp(1.0f, e)));
}

TEST_CASE("quantize_rows and dequantize_rows follow the scalar casts", "[kernels][quantize]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t R = GENERATE(0, 1, 5, 300), C = GENERATE(1, 16, 127, 128, 129, 384);
  const bool hostile = GENERATE(false, true);
  CAPTURE(backend.name, R, C, hostile);
  check_rows<float>(R, C, hostile);
  check_rows<bfloat16>(R, C, hostile);
}

TEST_CASE("quantize_columns and requantize_columns follow the scalar casts", "[kernels][quantize]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t C = GENERATE(1, 16, 65, 130);
  const Groups groups(GENERATE(std::vector<int64_t>{0}, std::vector<int64_t>{1}, std::vector<int64_t>{128},
                               std::vector<int64_t>{5, 0, 129, 0, 256, 31}));
  const bool hostile = GENERATE(false, true);
  CAPTURE(backend.name, C, groups.offsets, hostile);
  check_columns<float>(groups, C, hostile);
  check_columns<bfloat16>(groups, C, hostile);
  check_requantize(groups, C, /*gather=*/false, hostile);
  check_requantize(groups, C, /*gather=*/true, hostile);
}

TEST_CASE("requantize_tiles shifts codes to the largest scale of a tile", "[kernels][quantize]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t C = GENERATE(1, 16, 130, 256);
  const Groups groups(
      GENERATE(std::vector<int64_t>{0}, std::vector<int64_t>{1}, std::vector<int64_t>{5, 0, 129, 0, 256, 31}));
  const bool gather = GENERATE(false, true), hostile = GENERATE(false, true);
  CAPTURE(backend.name, C, groups.offsets, gather, hostile);
  check_tiles(groups, C, gather, hostile);
}

TEST_CASE("quantize_blocks follows the scalar casts", "[kernels][quantize]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t G = GENERATE(1, 3), N = GENERATE(0, 1, 130, 256), K = GENERATE(1, 33, 128, 300);
  const bool hostile = GENERATE(false, true);
  CAPTURE(backend.name, G, N, K, hostile);
  check_blocks<float>(G, N, K, hostile);
  check_blocks<bfloat16>(G, N, K, hostile);
}

TEST_CASE("a rescaled block loses nothing but what falls below its smallest number", "[kernels][quantize]") {
  // Why power-of-two scales: columns cut from codes of rows keep every bit of the values that stay normal numbers.
  const int64_t R = 128, C = 128;
  auto x = uniform<float>(R * C, 6);
  for (float& value : x) value = value < 0 ? value - 1 : value + 1;  // within a factor of 2
  const Quantised rows = reference(x, R, C, 1, 128);
  auto codes = rows.codes;
  auto scale = rows.scale;
  std::vector<int64_t> offsets = {0, R}, block_offsets = {0, 1};
  std::vector<uint8_t> out(codes.size());
  std::vector<float> out_scale(static_cast<size_t>(C));
  kernels::requantize_columns({.codes = codes_view(codes, {R, C}),
                               .scale = view(scale, {R, 1}),
                               .rows = {},
                               .offsets = view(offsets, {2}),
                               .block_offsets = view(block_offsets, {2}),
                               .out_codes = codes_view(out, {R, C}),
                               .out_scale = view(out_scale, {1, C}),
                               .stats = nullptr},
                              here());
  out = rows_of_column_codes(out, R, C);
  int64_t wrong = 0;
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t c = 0; c < C; ++c) {
      wrong += decode(float8_e4m3{out[size_t(r * C + c)]}) * out_scale[size_t(c)] !=
               decode(float8_e4m3{codes[size_t(r * C + c)]}) * scale[size_t(r)];
    }
  }
  CHECK(wrong == 0);
}

}  // namespace octet::test
