#include "kernels/permute.h"

#include "tests/kernels/same_bits.h"

namespace octet::test {
namespace {

struct Permutation {
  std::vector<int64_t> offsets;
  std::vector<int32_t> row_of, source, pairs;
};

Permutation build(std::vector<int32_t> indices, int64_t T, int64_t K, int64_t E) {
  Permutation p;
  p.offsets.assign(size_t(E + 1), -1);
  p.row_of.assign(size_t(T * K), -1);
  p.source.assign(size_t(T * K), -1);
  p.pairs.assign(size_t(T * K), -1);
  kernels::build_permutation({.indices = view(indices, {T, K}),
                              .offsets = view(p.offsets, {E + 1}),
                              .row_of = view(p.row_of, {T, K}),
                              .source = view(p.source, {T * K}),
                              .pairs = view(p.pairs, {T * K})},
                             here());
  return p;
}

// K different experts for each token, from a random start and step 1; expert E - 1 gets none where E > K.
std::vector<int32_t> random_choice(int64_t T, int64_t K, int64_t E) {
  const RandomStream random(7, "test");
  const int64_t used = std::max(K, E - 1);
  std::vector<int32_t> indices;
  for (int64_t t = 0; t < T; ++t) {
    const int64_t start = int64_t(random.below(uint64_t(used), uint64_t(t)));
    for (int64_t k = 0; k < K; ++k) indices.push_back(int32_t((start + k) % used));
  }
  return indices;
}

template <class Scalar>
void check_combine(int64_t T, int64_t K, int64_t D) {
  const int64_t E = K + 2, R = T * K;
  Permutation p = build(random_choice(T, K, E), T, K, E);
  auto rows = uniform<Scalar>(R * D, 1), base = uniform<Scalar>(T * D, 2);
  Doubles sum(size_t(T * D), 0.0), sum_with_base = doubles(base);
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t d = 0; d < D; ++d) {
      for (int64_t k = 0; k < K; ++k) {
        const double x = double(float(rows[size_t(p.row_of[size_t(t * K + k)] * D + d)]));
        sum[size_t(t * D + d)] += x, sum_with_base[size_t(t * D + d)] += x;
      }
    }
  }
  const double tolerance = double(K + 1) * kEpsilonF32 + (std::is_same_v<Scalar, float> ? 0 : kEpsilonBF16 / 2);
  std::vector<Scalar> y(base.size());
  const View rows_view = view(rows, {R, D}), row_of = view(p.row_of, {T, K}), y_view = view(y, {T, D});
  kernels::combine_forward({.rows = rows_view, .row_of = row_of, .base = view(base, {T, D}), .y = y_view}, here());
  CHECK_THAT(doubles(y), NearAll(sum_with_base, tolerance));
  kernels::combine_forward({.rows = rows_view, .row_of = row_of, .base = {}, .y = y_view}, here());
  CHECK_THAT(doubles(y), NearAll(sum, tolerance));
  y = base;  // base may be y
  const View in_place = view(y, {T, D});
  kernels::combine_forward({.rows = rows_view, .row_of = row_of, .base = in_place, .y = in_place}, here());
  CHECK_THAT(doubles(y), NearAll(sum_with_base, tolerance));

  // Rows in two parts.
  const int64_t first = R / 3;
  std::vector<Scalar> same_y(y.size()), head(rows.begin(), rows.begin() + first * D),
      tail(rows.begin() + first * D, rows.end());
  kernels::combine_forward({.rows = view(head, {first, D}),
                            .more_rows = view(tail, {R - first, D}),
                            .row_of = row_of,
                            .base = view(base, {T, D}),
                            .y = view(same_y, {T, D})},
                           here());
  CHECK(doubles(same_y) == doubles(y));
}

}  // namespace

TEST_CASE("a permutation sorts pairs by expert and then by token", "[kernels][permute]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  // Tokens 0 and 2 choose experts 3 and 1; token 1 chooses 1 and 0; expert 2 is chosen by nobody.
  const Permutation p = build({3, 1, 1, 0, 3, 1}, 3, 2, 4);
  CHECK(p.offsets == std::vector<int64_t>{0, 1, 4, 4, 6});
  CHECK(p.row_of == std::vector<int32_t>{4, 1, 2, 0, 5, 3});
  CHECK(p.source == std::vector<int32_t>{1, 0, 1, 2, 0, 2});
  CHECK(p.pairs == std::vector<int32_t>{3, 1, 2, 5, 0, 4});
  const Permutation none = build({}, 0, 2, 3);
  CHECK(none.offsets == std::vector<int64_t>{0, 0, 0, 0});
  const Permutation one = build({0, 0}, 2, 1, 1);
  CHECK(one.offsets == std::vector<int64_t>{0, 2});
  CHECK(one.source == std::vector<int32_t>{0, 1});
}

TEST_CASE("a permutation of many tokens is a stable sort", "[kernels][permute]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t T = GENERATE(301, 3000), K = 3, E = GENERATE(11, 70);
  CAPTURE(backend.name, T, E);
  const std::vector<int32_t> indices = random_choice(T, K, E);
  const Permutation p = build(indices, T, K, E);
  std::vector<int32_t> source, pairs, row_of(size_t(T * K));
  std::vector<int64_t> offsets = {0};
  for (int32_t e = 0; e < E; ++e) {
    for (int64_t pair = 0; pair < T * K; ++pair) {
      if (indices[size_t(pair)] != e) continue;
      row_of[size_t(pair)] = int32_t(source.size());
      source.push_back(int32_t(pair / K));
      pairs.push_back(int32_t(pair));
    }
    offsets.push_back(int64_t(source.size()));
  }
  CHECK(p.offsets == offsets);
  CHECK(p.row_of == row_of);
  CHECK(p.source == source);
  CHECK(p.pairs == pairs);
}

TEST_CASE("gather copies rows of any dtype", "[kernels][permute]") {
  const int64_t S = 9, R = 301, C = GENERATE(1, 7, 128);
  std::vector<int32_t> source;
  for (int64_t r = 0; r < R; ++r) source.push_back(int32_t(r * 5 % S));
  std::vector<uint8_t> x(size_t(S * C)), y(size_t(R * C));
  std::vector<float> wide(size_t(S * C)), wide_y(size_t(R * C));
  for (size_t i = 0; i < x.size(); ++i) x[i] = uint8_t(i * 37), wide[i] = float(i);
  const Backend backend = GENERATE(from_range(backends()));
  ThreadPool pool(3);
  const UseBackend use(backend, pool);
  CAPTURE(backend.name, C);
  kernels::gather_rows({.x = view(x, {S, C}), .source = view(source, {R}), .y = view(y, {R, C})}, here());
  kernels::gather_rows({.x = view(wide, {S, C}), .source = view(source, {R}), .y = view(wide_y, {R, C})}, here());
  size_t wrong = 0;
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t c = 0; c < C; ++c) {
      wrong += y[size_t(r * C + c)] != x[size_t(source[size_t(r)] * C + c)];
      wrong += wide_y[size_t(r * C + c)] != wide[size_t(source[size_t(r)] * C + c)];
    }
  }
  CHECK(wrong == 0);
  std::vector<int32_t> nobody;
  std::vector<float> nothing;
  kernels::gather_rows({.x = view(wide, {S, C}), .source = view(nobody, {0}), .y = view(nothing, {0, C})}, here());
}

TEST_CASE("what is left out of a gather, and room without rows, stay as they are", "[kernels][permute]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t C = GENERATE(1, 7, 128);
  CAPTURE(backend.name, C);
  std::vector<float> x(size_t(3 * C)), y(size_t(4 * C), -1.0f), want = y;
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(i);
  std::vector<int32_t> source = {2, -1, 0, -1};
  std::copy_n(x.begin() + 2 * C, C, want.begin());
  std::copy_n(x.begin(), C, want.begin() + 2 * C);
  kernels::gather_rows({.x = view(x, {3, C}), .source = view(source, {4}), .y = view(y, {4, C}), .skips = true},
                       here());
  CHECK(y == want);

  std::vector<int64_t> count = {GENERATE(0, 1, 3, 4)};
  std::vector<int32_t> of_row = {1, 0, 2, 2};
  std::fill(y.begin(), y.end(), -1.0f);
  want = y;
  for (int64_t r = 0; r < count[0]; ++r) {
    std::copy_n(x.begin() + of_row[size_t(r)] * C, C, want.begin() + r * C);
  }
  kernels::gather_rows(
      {.x = view(x, {3, C}), .source = view(of_row, {4}), .y = view(y, {4, C}), .num_rows = view(count, {1})}, here());
  CHECK(y == want);
}

TEST_CASE("combine follows its formula", "[kernels][permute]") {
  const Backend backend = GENERATE(from_range(backends()));
  const int64_t T = GENERATE(0, 1, 5), K = GENERATE(1, 3), D = GENERATE(1, 16, 33, 147);
  const UseBackend use(backend);
  CAPTURE(backend.name, T, K, D);
  check_combine<float>(T, K, D);
  check_combine<bfloat16>(T, K, D);
}

TEST_CASE("combine gives the same bits everywhere", "[kernels][permute]") {
  const int64_t T = 300, K = 2, D = 77, E = 5, R = T * K;
  Permutation p = build(random_choice(T, K, E), T, K, E);
  auto rows = uniform<bfloat16>(R * D, 1);
  check_same_bits(backends(), [&](std::string& bytes) {
    std::vector<bfloat16> y(size_t(T * D));
    kernels::combine_forward(
        {.rows = view(rows, {R, D}), .row_of = view(p.row_of, {T, K}), .base = {}, .y = view(y, {T, D})}, here());
    append_bytes(bytes, y);
  });
}

}  // namespace octet::test
