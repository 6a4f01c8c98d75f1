#include "kernels/rank_rows.h"

#include "core/base/random.h"
#include "kernels/permute.h"
#include "tests/kernels/backend.h"
#include "tests/support/numeric.h"

namespace octet::test {
namespace {

// What a rank sends, and where its pairs go.
struct Sent {
  std::vector<int32_t> heads, tokens, pairs, slots;
  bool operator==(const Sent&) const = default;
};
struct Sizes {
  int64_t T, K, E, P, C, R;
  int64_t L() const { return E / P; }
};

Sent send(std::vector<int32_t> indices, const Sizes& s) {
  std::vector<int64_t> offsets(size_t(s.E + 1));
  std::vector<int32_t> row_of(size_t(s.T * s.K)), source(size_t(s.T * s.K));
  row_of.reserve(1), source.reserve(1), indices.reserve(1);
  kernels::build_permutation({.indices = view(indices, {s.T, s.K}),
                              .offsets = view(offsets, {s.E + 1}),
                              .row_of = view(row_of, {s.T, s.K}),
                              .source = view(source, {s.T * s.K})},
                             here());
  Sent sent;
  sent.heads.assign(size_t(s.P * (s.L() + s.R)), -7);
  sent.tokens.assign(size_t(s.P * s.C), -7);
  sent.pairs.assign(size_t(s.P * s.R), -7);
  sent.slots.assign(size_t(s.T * s.K), -7);
  for (auto* list : {&sent.tokens, &sent.pairs, &sent.slots}) list->reserve(1);
  kernels::rows_to_ranks({.indices = view(indices, {s.T, s.K}),
                          .offsets = view(offsets, {s.E + 1}),
                          .row_of = view(row_of, {s.T, s.K}),
                          .heads = view(sent.heads, {s.P, s.L() + s.R}),
                          .tokens = view(sent.tokens, {s.P, s.C}),
                          .pairs = view(sent.pairs, {s.P, s.R}),
                          .slots = view(sent.slots, {s.T, s.K})},
                         here());
  return sent;
}

// In plain words, for a message with room for all. What is behind the rows of a head was never written.
Sent expected(const std::vector<int32_t>& indices, const Sizes& s) {
  Sent want;
  want.heads.assign(size_t(s.P * (s.L() + s.R)), -7);
  want.tokens.assign(size_t(s.P * s.C), -1);
  want.pairs.assign(size_t(s.P * s.R), -1);
  want.slots.assign(size_t(s.T * s.K), -7);
  for (int64_t p = 0; p < s.P; ++p) {
    std::vector<int32_t> copy_of_token(size_t(s.T), -1);
    int32_t copies = 0;
    for (int64_t t = 0; t < s.T; ++t) {
      bool visits = false;
      for (int64_t k = 0; k < s.K; ++k) visits |= indices[size_t(t * s.K + k)] / s.L() == p;
      if (!visits) continue;
      want.tokens[size_t(p * s.C + copies)] = int32_t(t);
      copy_of_token[size_t(t)] = copies++;
    }
    int64_t row = 0;
    for (int64_t e = p * s.L(); e < (p + 1) * s.L(); ++e) {
      const int64_t first = row;
      for (int64_t pair = 0; pair < s.T * s.K; ++pair) {
        if (indices[size_t(pair)] != e) continue;
        want.heads[size_t(p * (s.L() + s.R) + s.L() + row)] = copy_of_token[size_t(pair / s.K)];
        want.pairs[size_t(p * s.R + row)] = int32_t(pair);
        want.slots[size_t(pair)] = int32_t(p * s.R + row);
        ++row;
      }
      want.heads[size_t(p * (s.L() + s.R) + e % s.L())] = int32_t(row - first);
    }
  }
  return want;
}

// K different experts of each token, none of them for the last expert where there are more; or all the same ones.
std::vector<int32_t> choices(int64_t T, int64_t K, int64_t E, bool to_one) {
  const RandomStream random(7, "rank_rows");
  const int64_t used = std::max(K, E - 1);
  std::vector<int32_t> indices;
  for (int64_t t = 0; t < T; ++t) {
    const int64_t start = to_one ? 0 : int64_t(random.below(uint64_t(used), uint64_t(t)));
    for (int64_t k = 0; k < K; ++k) indices.push_back(int32_t((start + k * (used / K)) % used));
  }
  return indices;
}

}  // namespace

TEST_CASE("rows for ranks are listed as in plain words", "[kernels][rank_rows]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t T = GENERATE(0, 1, 37, 300), K = GENERATE(1, 3), P = GENERATE(1, 2, 5);
  const int64_t E = P * GENERATE(1, 4, 40);
  if (K > E) return;
  const bool to_one = GENERATE(false, true);
  CAPTURE(backend.name, T, K, E, P, to_one);
  const Sizes s{.T = T, .K = K, .E = E, .P = P, .C = T, .R = T * std::min(K, E / P)};
  const std::vector<int32_t> indices = choices(T, K, E, to_one);
  CHECK(send(indices, s) == expected(indices, s));
}

TEST_CASE("rows without room are left out, and all that is listed is inside", "[kernels][rank_rows]") {
  const Backend backend = GENERATE(from_range(cpu_backends()));  // a GPU's record is that of a device in use
  const UseBackend use(backend);
  const Sizes s{.T = 10, .K = 2, .E = 4, .P = 2, .C = 6, .R = 6};
  // All to experts 0 and 1, of rank 0: 20 rows.
  std::vector<int32_t> indices;
  for (int64_t t = 0; t < s.T; ++t) indices.push_back(0), indices.push_back(1);
  const Sent sent = send(indices, s);
  CHECK(std::vector<int32_t>(sent.heads.begin(), sent.heads.begin() + 8) ==
        std::vector<int32_t>{6, 0, 0, 1, 2, 3, 4, 5});
  CHECK(std::vector<int32_t>(sent.heads.begin() + 8, sent.heads.begin() + 10) == std::vector<int32_t>{0, 0});
  CHECK(sent.tokens == std::vector<int32_t>{0, 1, 2, 3, 4, 5, -1, -1, -1, -1, -1, -1});
  CHECK(sent.pairs == std::vector<int32_t>{0, 2, 4, 6, 8, 10, -1, -1, -1, -1, -1, -1});
  for (const int32_t slot : sent.slots) CHECK((slot >= 0 && slot < s.R));
}

TEST_CASE("rows from ranks lie by expert, then rank, then token", "[kernels][rank_rows]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const auto [P, nodes] = GENERATE(std::pair{1, 1}, std::pair{2, 1}, std::pair{5, 1}, std::pair{4, 2}, std::pair{6, 3});
  const int64_t L = GENERATE(1, 4, 40), C = GENERATE(0, 3, 50);
  const int64_t R = 7 * C;  // 350 at most: more than a block of threads has
  CAPTURE(backend.name, P, nodes, L, C);
  const RandomStream random(11, "heads");
  std::vector<int32_t> heads(size_t(P * (L + R)), 0), source(size_t(P * R), -7), slot_of_row = source,
                                                                                 row_of_slot = source;
  std::vector<int64_t> offsets(size_t(L + 1), -7);
  for (auto* list : {&source, &slot_of_row, &row_of_slot}) list->reserve(1);
  for (int64_t p = 0; p < P; ++p) {
    int64_t left = p == 1 ? 0 : p == 2 ? R : R / 2;  // nothing, all that there is room for, or some of it
    for (int64_t e = 0; e < L; ++e) {
      const auto rows = e == L - 1 ? left : int64_t(random.below(uint64_t(left / 2 + 1), uint64_t(p), uint64_t(e)));
      heads[size_t(p * (L + R) + e)] = int32_t(rows);
      left -= rows;
    }
    for (int64_t j = 0; j < R; ++j) {
      heads[size_t(p * (L + R) + L + j)] = int32_t(random.below(uint64_t(C), uint64_t(p), uint64_t(100 + j)));
    }
  }
  kernels::rows_from_ranks({.heads = view(heads, {P, L + R}),
                            .offsets = view(offsets, {L + 1}),
                            .source = view(source, {P * R}),
                            .slot_of_row = view(slot_of_row, {P * R}),
                            .row_of_slot = view(row_of_slot, {P, R}),
                            .copies = C,
                            .nodes = nodes},
                           here());
  std::vector<int32_t> want_source, want_slots, want_rows(size_t(P * R), -1);
  std::vector<int64_t> want_offsets = {0};
  for (int64_t e = 0; e < L; ++e) {
    for (int64_t p = 0; p < P; ++p) {
      int64_t j = 0;
      for (int64_t before = 0; before < e; ++before) j += heads[size_t(p * (L + R) + before)];
      for (int64_t i = 0; i < heads[size_t(p * (L + R) + e)]; ++i, ++j) {
        want_rows[size_t(p * R + j)] = int32_t(want_source.size());
        const int64_t message = p % (P / nodes) * nodes + p / (P / nodes);
        want_source.push_back(int32_t(message * C) + heads[size_t(p * (L + R) + L + j)]);
        want_slots.push_back(int32_t(p * R + j));
      }
    }
    want_offsets.push_back(int64_t(want_source.size()));
  }
  want_source.resize(size_t(P * R), 0), want_slots.resize(size_t(P * R), -1);
  CHECK(offsets == want_offsets);
  CHECK(source == want_source);
  CHECK(slot_of_row == want_slots);
  CHECK(row_of_slot == want_rows);
}

TEST_CASE("tokens for nodes are listed as in plain words, and handed on to each place", "[kernels][rank_rows]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t T = GENERATE(0, 1, 37, 600), K = GENERATE(1, 3), N = GENERATE(1, 2, 3), S = GENERATE(1, 2, 9);
  const int64_t L = GENERATE(1, 4), E = N * S * L;
  if (K > E) return;
  const bool to_one = GENERATE(false, true);
  const int64_t C1 = T / GENERATE(1, 2);  // with room for all, and without
  CAPTURE(backend.name, T, K, N, S, L, to_one, C1);
  std::vector<int32_t> indices = choices(T, K, E, to_one), tokens(size_t(N * C1), -7);
  std::vector<int64_t> places(size_t(N * C1), -7);
  indices.reserve(1), tokens.reserve(1), places.reserve(1);
  kernels::tokens_to_nodes({.indices = view(indices, {T, K}),
                            .tokens = view(tokens, {N, C1}),
                            .places = view(places, {N, C1}),
                            .num_experts = E,
                            .ranks_per_node = S},
                           here());
  std::vector<int32_t> want_tokens;
  std::vector<int64_t> want_places;
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t t = 0; t < T && int64_t(want_tokens.size()) < (n + 1) * C1; ++t) {
      int64_t needed = 0;
      for (int64_t k = 0; k < K; ++k) {
        const int64_t rank = indices[size_t(t * K + k)] / L;
        if (rank / S == n) needed |= int64_t(1) << rank % S;
      }
      if (needed != 0) want_tokens.push_back(int32_t(t)), want_places.push_back(needed);
    }
    want_tokens.resize(size_t((n + 1) * C1), -1), want_places.resize(size_t((n + 1) * C1), 0);
  }
  CHECK(tokens == want_tokens);
  CHECK(places == want_places);

  const int64_t C = C1 / GENERATE(1, 3);
  CAPTURE(C);
  std::vector<int32_t> copies(size_t(S * N * C), -7), want_copies;
  copies.reserve(1);
  kernels::copies_to_places({.places = view(want_places, {N, C1}), .copies = view(copies, {S, N, C})}, here());
  for (int64_t s = 0; s < S; ++s) {
    for (int64_t n = 0; n < N; ++n) {
      const auto end = want_copies.size() + size_t(C);
      for (int64_t i = n * C1; i < (n + 1) * C1 && want_copies.size() < end; ++i) {
        if ((want_places[size_t(i)] >> s & 1) != 0) want_copies.push_back(int32_t(i));
      }
      want_copies.resize(end, -1);
    }
  }
  CHECK(copies == want_copies);
}

}  // namespace octet::test
