#include "kernels/permute.h"

#include "tests/kernels/same_bits.h"

namespace octet::test {
namespace {

struct Permutation {
  std::vector<int64_t> offsets;
  std::vector<int32_t> row_of, source;
};

Permutation build(std::vector<int32_t> indices, int64_t T, int64_t K, int64_t E) {
  Permutation p;
  p.offsets.assign(size_t(E + 1), -1);
  p.row_of.assign(size_t(T * K), -1);
  p.source.assign(size_t(T * K), -1);
  kernels::build_permutation({.indices = view(indices, {T, K}),
                              .offsets = view(p.offsets, {E + 1}),
                              .row_of = view(p.row_of, {T, K}),
                              .source = view(p.source, {T * K})},
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
  auto rows = uniform<Scalar>(R * D, 1), base = uniform<Scalar>(T * D, 2), dy = uniform<Scalar>(T * D, 3);
  auto weights = uniform(T * K, 4);
  const auto formula = [&](const Doubles& x, const Doubles& w, const Doubles& b) {
    Doubles y = b;
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t d = 0; d < D; ++d) {
        for (int64_t k = 0; k < K; ++k) {
          y[size_t(t * D + d)] += w[size_t(t * K + k)] * x[size_t(p.row_of[size_t(t * K + k)] * D + d)];
        }
      }
    }
    return y;
  };
  const Doubles none(size_t(T * D), 0.0), ones(size_t(T * K), 1.0);
  const double stored = std::is_same_v<Scalar, float> ? 0 : kEpsilonBF16 / 2;
  const double tolerance = double(K + 1) * kEpsilonF32 + stored;
  std::vector<Scalar> y(base.size());
  kernels::combine_forward({.rows = view(rows, {R, D}),
                            .row_of = view(p.row_of, {T, K}),
                            .weights = view(weights, {T, K}),
                            .base = view(base, {T, D}),
                            .y = view(y, {T, D})},
                           here());
  CHECK_THAT(doubles(y), NearAll(formula(doubles(rows), doubles(weights), doubles(base)), tolerance));
  kernels::combine_forward(
      {.rows = view(rows, {R, D}), .row_of = view(p.row_of, {T, K}), .weights = {}, .base = {}, .y = view(y, {T, D})},
      here());
  CHECK_THAT(doubles(y), NearAll(formula(doubles(rows), ones, none), tolerance));
  y = base;  // base may be y
  kernels::combine_forward({.rows = view(rows, {R, D}),
                            .row_of = view(p.row_of, {T, K}),
                            .weights = view(weights, {T, K}),
                            .base = view(y, {T, D}),
                            .y = view(y, {T, D})},
                           here());
  CHECK_THAT(doubles(y), NearAll(formula(doubles(rows), doubles(weights), doubles(base)), tolerance));

  // Rows in two parts.
  const int64_t first = R / 3;
  std::vector<Scalar> same_y(y.size()), head(rows.begin(), rows.begin() + first * D),
      tail(rows.begin() + first * D, rows.end());
  kernels::combine_forward({.rows = view(head, {first, D}),
                            .more_rows = view(tail, {R - first, D}),
                            .row_of = view(p.row_of, {T, K}),
                            .weights = view(weights, {T, K}),
                            .base = view(base, {T, D}),
                            .y = view(same_y, {T, D})},
                           here());
  CHECK(doubles(same_y) == doubles(y));

  std::vector<Scalar> drows(rows.size());
  std::vector<float> dweights(weights.size());
  kernels::combine_backward({.dy = view(dy, {T, D}),
                             .rows = view(rows, {R, D}),
                             .row_of = view(p.row_of, {T, K}),
                             .weights = view(weights, {T, K}),
                             .drows = view(drows, {R, D}),
                             .dweights = view(dweights, {T, K})},
                            here());
  // The same from where the rows lie.
  std::vector<float> row_weights(size_t(R), 0.0f), dweights_of_rows(size_t(R), 7.0f);
  for (size_t pair = 0; pair < p.row_of.size(); ++pair) row_weights[size_t(p.row_of[pair])] = weights[pair];
  std::vector<Scalar> same_drows(rows.size(), Scalar(7.0f));
  kernels::combine_backward_at_rows({.dy = view(dy, {T, D}),
                                     .source = view(p.source, {R}),
                                     .rows = view(rows, {R, D}),
                                     .weights = view(row_weights, {R}),
                                     .drows = view(same_drows, {R, D}),
                                     .dweights = view(dweights_of_rows, {R})},
                                    here());
  CHECK(doubles(same_drows) == doubles(drows));
  std::vector<float> same_dweights;
  for (const int32_t r : p.row_of) same_dweights.push_back(dweights_of_rows[size_t(r)]);
  CHECK(same_dweights == dweights);
  const Doubles x = doubles(rows), w = doubles(weights), b = doubles(base);
  const auto of_rows = [&](const Doubles& v) { return formula(v, w, b); };
  const auto of_weights = [&](const Doubles& v) { return formula(x, v, b); };
  CHECK_THAT(doubles(drows), NearAll(central_difference(of_rows, doubles(dy), x), kEpsilonF32 + stored + 1e-8));
  CHECK_THAT(doubles(dweights), NearAll(central_difference(of_weights, doubles(dy), w),
                                        4 * std::sqrt(double(D)) * kEpsilonF32 + 1e-8, /*floor=*/1.0));
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
  std::vector<int32_t> source, row_of(size_t(T * K));
  std::vector<int64_t> offsets = {0};
  for (int32_t e = 0; e < E; ++e) {
    for (int64_t pair = 0; pair < T * K; ++pair) {
      if (indices[size_t(pair)] != e) continue;
      row_of[size_t(pair)] = int32_t(source.size());
      source.push_back(int32_t(pair / K));
    }
    offsets.push_back(int64_t(source.size()));
  }
  CHECK(p.offsets == offsets);
  CHECK(p.row_of == row_of);
  CHECK(p.source == source);
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

  std::vector<int64_t> count = {2};
  std::vector<int32_t> of_row = {1, 0, -1, -1};
  std::vector<float> rows(size_t(4 * C), 1.0f), weights(4, 2.0f), drows(size_t(4 * C), -1.0f), dweights(4, -1.0f);
  kernels::combine_backward_at_rows({.dy = view(x, {3, C}),
                                     .source = view(of_row, {4}),
                                     .rows = view(rows, {4, C}),
                                     .weights = view(weights, {4}),
                                     .drows = view(drows, {4, C}),
                                     .dweights = view(dweights, {4}),
                                     .num_rows = view(count, {1})},
                                    here());
  for (int64_t i = 0; i < 4 * C; ++i) {
    const float wanted = i < C ? 2.0f * float(C + i) : i < 2 * C ? 2.0f * float(i - C) : -1.0f;
    REQUIRE(drows[size_t(i)] == wanted);
  }
  CHECK(dweights[1] == Approx(double(C * (C - 1)) / 2));
  CHECK(dweights[2] == -1.0f);
  CHECK(dweights[3] == -1.0f);
}

TEST_CASE("combine follows its formula, forward and backward", "[kernels][permute]") {
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
  auto rows = uniform<bfloat16>(R * D, 1), dy = uniform<bfloat16>(T * D, 3);
  auto weights = uniform(T * K, 4);
  check_same_bits(backends(), [&](std::string& bytes) {
    std::vector<bfloat16> y(dy.size());
    kernels::combine_forward({.rows = view(rows, {R, D}),
                              .row_of = view(p.row_of, {T, K}),
                              .weights = view(weights, {T, K}),
                              .base = {},
                              .y = view(y, {T, D})},
                             here());
    append_bytes(bytes, y);
  });
  check_same_bits([&](std::string& bytes) {
    std::vector<bfloat16> drows(rows.size());
    std::vector<float> dweights(weights.size());
    kernels::combine_backward({.dy = view(dy, {T, D}),
                               .rows = view(rows, {R, D}),
                               .row_of = view(p.row_of, {T, K}),
                               .weights = view(weights, {T, K}),
                               .drows = view(drows, {R, D}),
                               .dweights = view(dweights, {T, K})},
                              here());
    append_bytes(bytes, drows);
    append_bytes(bytes, dweights);
  });
}

}  // namespace octet::test
