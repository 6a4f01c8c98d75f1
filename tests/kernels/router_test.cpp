#include "kernels/router.h"

#include <algorithm>
#include <limits>
#include <set>

#include "tests/kernels/same_bits.h"

namespace octet::test {
namespace {

using kernels::RouterOptions;
using kernels::ScoreFunction;

struct Routed {
  std::vector<float> scores, weights;
  std::vector<int32_t> indices;
};

Routed route(std::vector<float> logits, std::vector<float> bias, int64_t K, const RouterOptions& options, int64_t T = 1,
             std::vector<int32_t> replayed = {}) {
  const int64_t E = T == 0 ? 4 : int64_t(logits.size()) / T;
  Routed routed;
  routed.scores.resize(logits.size());
  routed.weights.resize(size_t(T * K));
  routed.indices.assign(size_t(T * K), -1);
  kernels::router_forward({.logits = view(logits, {T, E}),
                           .bias = bias.empty() ? View() : view(bias, {E}),
                           .replayed = replayed.empty() ? View() : view(replayed, {T, K}),
                           .scores = view(routed.scores, {T, E}),
                           .indices = view(routed.indices, {T, K}),
                           .weights = view(routed.weights, {T, K}),
                           .options = options},
                          here());
  return routed;
}

// The logit whose sigmoid is s.
float logit(double s) { return float(std::log(s / (1 - s))); }
std::vector<float> logits_of(const std::vector<double>& scores) {
  std::vector<float> logits;
  for (const double s : scores) logits.push_back(logit(s));
  return logits;
}

Doubles scores_of(const Doubles& logits, size_t E, ScoreFunction function) {
  Doubles s(logits.size());
  for (size_t row = 0; row < logits.size(); row += E) {
    double sum = 0;
    for (size_t i = 0; i < E; ++i) sum += std::exp(logits[row + i]);
    for (size_t i = 0; i < E; ++i) {
      const double x = logits[row + i];
      s[row + i] = function == ScoreFunction::kSoftmax ? std::exp(x) / sum : 1 / (1 + std::exp(-x));
    }
  }
  return s;
}

// The K best of each row by sorting: largest first, equal ones by index; groups by the sum of their two best.
std::vector<int32_t> chosen_of(const Doubles& c, size_t E, size_t K, size_t groups, size_t kept) {
  std::vector<int32_t> indices;
  for (size_t row = 0; row < c.size(); row += E) {
    const auto by = [](const Doubles& v) {
      std::vector<int32_t> order(v.size());
      for (size_t i = 0; i < v.size(); ++i) order[i] = int32_t(i);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return v[size_t(a)] > v[size_t(b)]; });
      return order;
    };
    Doubles values(c.begin() + long(row), c.begin() + long(row + E)), sums;
    for (size_t g = 0; g < groups; ++g) {
      Doubles inside(values.begin() + long(g * E / groups), values.begin() + long((g + 1) * E / groups));
      std::sort(inside.rbegin(), inside.rend());
      sums.push_back(inside[0] + (inside.size() > 1 ? inside[1] : 0));
    }
    const std::vector<int32_t> best = by(sums);
    for (size_t g = kept; g < groups; ++g) {
      for (size_t i = 0; i < E / groups; ++i) values[size_t(best[g]) * (E / groups) + i] = -INFINITY;
    }
    const std::vector<int32_t> order = by(values);
    indices.insert(indices.end(), order.begin(), order.begin() + long(K));
  }
  return indices;
}

Doubles weights_of(const Doubles& s, const std::vector<int32_t>& indices, size_t E, size_t K,
                   const RouterOptions& options) {
  Doubles w(indices.size());
  for (size_t t = 0; t < indices.size() / K; ++t) {
    double sum = 1e-20;
    for (size_t k = 0; k < K; ++k) sum += s[t * E + size_t(indices[t * K + k])];
    for (size_t k = 0; k < K; ++k) {
      const double raw = s[t * E + size_t(indices[t * K + k])];
      w[t * K + k] = (options.normalize ? raw / sum : raw) * double(options.scaling);
    }
  }
  return w;
}

void check(int64_t T, int64_t E, int64_t K, const RouterOptions& options, bool has_bias) {
  auto logits = uniform(T * E, 1), bias = uniform(E, 2), dweights = uniform(T * K, 3), dscores = uniform(T * E, 4);
  for (float& value : logits) value *= 3;
  if (!has_bias) bias.clear();
  const Routed routed = route(logits, bias, K, options, T);
  const Doubles x = doubles(logits), s = scores_of(x, size_t(E), options.score);
  // An exponential, a sum of E terms, a quotient.
  const double tolerance = (4 + std::sqrt(double(E))) * kEpsilonF32;
  CHECK_THAT(doubles(routed.scores), NearAll(s, tolerance));
  // The choice itself is exact: from the scores as they are, in the float32 of the formula.
  Doubles c;
  for (size_t i = 0; i < routed.scores.size(); ++i) {
    c.push_back(double(has_bias ? routed.scores[i] + bias[i % size_t(E)] : routed.scores[i]));
  }
  CHECK(routed.indices == chosen_of(c, size_t(E), size_t(K), size_t(options.num_groups), size_t(options.kept_groups)));
  CHECK_THAT(doubles(routed.weights),
             NearAll(weights_of(s, routed.indices, size_t(E), size_t(K), options), 2 * tolerance));

  Routed kept = routed;
  std::vector<float> dlogits(logits.size());
  for (const bool has_dscores : {false, true}) {
    kernels::router_backward({.scores = view(kept.scores, {T, E}),
                              .indices = view(kept.indices, {T, K}),
                              .weights = view(kept.weights, {T, K}),
                              .dweights = view(dweights, {T, K}),
                              .dscores = has_dscores ? view(dscores, {T, E}) : View(),
                              .dlogits = view(dlogits, {T, E}),
                              .options = options},
                             here());
    // What the rest of the network sees of the router: its weights, and its scores through the balance losses.
    const auto formula = [&](const Doubles& v) {
      const Doubles sv = scores_of(v, size_t(E), options.score);
      Doubles out = weights_of(sv, routed.indices, size_t(E), size_t(K), options);
      if (has_dscores) out.insert(out.end(), sv.begin(), sv.end());
      return out;
    };
    Doubles dy = doubles(dweights);
    if (has_dscores) {
      const Doubles more = doubles(dscores);
      dy.insert(dy.end(), more.begin(), more.end());
    }
    CHECK_THAT(doubles(dlogits), NearAll(central_difference(formula, dy, x), 8 * tolerance + 1e-8, /*floor=*/1.0));
  }
}

}  // namespace

TEST_CASE("the router follows its formula, forward and backward", "[kernels][router]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const ScoreFunction score = GENERATE(ScoreFunction::kSoftmax, ScoreFunction::kSigmoid);
  const bool normalize = GENERATE(false, true), has_bias = GENERATE(false, true);
  CAPTURE(backend.name, int(score), normalize, has_bias);
  const RouterOptions plain{.score = score, .normalize = normalize, .scaling = 2.5f};
  check(1, 1, 1, plain, has_bias);
  check(5, 4, 4, plain, has_bias);
  check(7, 19, 3, plain, has_bias);
  check(2, 64, 6, plain, has_bias);
  check(3, 100, 6, plain, has_bias);
  for (const int64_t kept : {1, 2, 3}) {
    RouterOptions grouped = plain;
    grouped.num_groups = 4, grouped.kept_groups = kept;
    check(9, 24, 3, grouped, has_bias);
    check(2, 80, 3, grouped, has_bias);
  }
  RouterOptions alone = plain;  // groups of one expert: their score is the score of the expert
  alone.num_groups = 5, alone.kept_groups = 3;
  check(6, 5, 2, alone, has_bias);
}

TEST_CASE("equal scores go to the lower index", "[kernels][router]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  const RouterOptions softmax{}, sigmoid{.score = ScoreFunction::kSigmoid};
  for (const RouterOptions& options : {softmax, sigmoid}) {
    CHECK(route({1, 1, 1, 1, 1}, {}, 3, options).indices == std::vector<int32_t>{0, 1, 2});
    CHECK(route({0, 2, 1, 2, 1, 1}, {}, 4, options).indices == std::vector<int32_t>{1, 3, 2, 4});
    CHECK(route({-1, 0, 0}, {1, 0, 0}, 3, {.score = options.score}).indices[0] == 0);
  }
  // Groups with equal sums: the first ones are kept. {3, 1}, {2, 2} and {1, 3} tie; experts 1 and 3 of the kept tie.
  const RouterOptions groups{.score = ScoreFunction::kSigmoid, .num_groups = 3, .kept_groups = 2};
  CHECK(route({0, 0, 0, 0, 0, 0}, {3, 1, 2, 2, 1, 3}, 4, groups).indices == std::vector<int32_t>{0, 2, 3, 1});
}

TEST_CASE("a group that is not kept gets no token though every kept choice is negative", "[kernels][router]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  // c of the kept group 1 is about {-0.1, -0.2}, of group 0 {-3, -4}: masking with 0 in place of -infinity would
  // choose group 0.
  const RouterOptions options{.score = ScoreFunction::kSigmoid, .num_groups = 2, .kept_groups = 1};
  const Routed routed = route({0, 0, 0, 0}, {-3.5f, -4.5f, -0.7f, -0.6f}, 2, options);
  CHECK(routed.indices == std::vector<int32_t>{3, 2});
  CHECK(routed.weights == std::vector<float>{0.5f, 0.5f});  // the bias enters no weight
}

TEST_CASE("groups compete with the sum of their two best, not with their best", "[kernels][router]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  const RouterOptions options{.score = ScoreFunction::kSigmoid, .num_groups = 2, .kept_groups = 1};
  const Routed routed = route(logits_of({0.9, 0.1, 0.1, 0.6, 0.6, 0.1}), {}, 2, options);
  CHECK(routed.indices == std::vector<int32_t>{3, 4});
}

TEST_CASE("raw weights keep their sum, normalised ones sum to the scaling", "[kernels][router]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  const std::vector<float> logits = logits_of({0.5, 0.25, 0.125, 0.75});
  const Routed raw = route(logits, {}, 2, {.score = ScoreFunction::kSigmoid, .normalize = false, .scaling = 2.0f});
  CHECK(raw.indices == std::vector<int32_t>{3, 0});
  CHECK_THAT(doubles(raw.weights), NearAll({1.5, 1.0}, 1e-6));
  const Routed normal = route(logits, {}, 2, {.score = ScoreFunction::kSigmoid, .scaling = 2.5f});
  CHECK_THAT(doubles(normal.weights), NearAll({1.5, 1.0}, 1e-6));
}

TEST_CASE("all tokens may choose one expert, and scores may underflow", "[kernels][router]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  for (const ScoreFunction score : {ScoreFunction::kSoftmax, ScoreFunction::kSigmoid}) {
    std::vector<float> logits;
    for (int t = 0; t < 40; ++t) logits.insert(logits.end(), {-200.0f, -300.0f, 200.0f, -250.0f});
    const Routed routed = route(logits, {}, 1, {.score = score}, 40);
    CHECK(routed.indices == std::vector<int32_t>(40, 2));
    CHECK(routed.weights == std::vector<float>(40, 1.0f));
  }
  // Every sigmoid is 0: the guard makes the weights 0, not NaN.
  const Routed none = route({-200, -200, -200}, {}, 2, {.score = ScoreFunction::kSigmoid});
  CHECK(none.weights == std::vector<float>{0.0f, 0.0f});
  CHECK(none.indices == std::vector<int32_t>{0, 1});
}

TEST_CASE("a NaN is chosen last and indices stay valid and distinct", "[kernels][router]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const std::vector<std::vector<float>> rows = {{nan, nan, nan, nan, nan, nan, nan, nan},
                                                {nan, 1, nan, 2, nan, nan, 0, -nan},
                                                {inf, inf, -inf, nan, 0, 1, -inf, inf},
                                                {-inf, -inf, -inf, -inf, -inf, -inf, -inf, -inf}};
  for (const auto& logits : rows) {
    for (const ScoreFunction score : {ScoreFunction::kSoftmax, ScoreFunction::kSigmoid}) {
      for (const int64_t groups : {1, 4}) {
        for (const int64_t K : {1, 3, 8}) {
          const RouterOptions options{.score = score, .num_groups = groups, .kept_groups = (groups + 1) / 2};
          const Routed routed = route(logits, {}, K, options);
          const std::set<int32_t> distinct(routed.indices.begin(), routed.indices.end());
          CHECK(int64_t(distinct.size()) == K);
          CHECK((*distinct.begin() >= 0 && *distinct.rbegin() < 8));
        }
      }
    }
  }
  CHECK(route(rows[1], {}, 4, {.score = ScoreFunction::kSigmoid}).indices == std::vector<int32_t>{3, 1, 6, 0});
}

TEST_CASE("replayed indices are used as they are", "[kernels][router]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  const Routed routed =
      route(logits_of({0.5, 0.25, 0.9, 0.75}), {9, 9, 9, 9}, 2, {.score = ScoreFunction::kSigmoid}, 1, {1, 3});
  CHECK(routed.indices == std::vector<int32_t>{1, 3});
  CHECK_THAT(doubles(routed.weights), NearAll({0.25, 0.75}, 1e-6));
}

TEST_CASE("no tokens are routed nowhere", "[kernels][router]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  CHECK(route({}, {}, 2, {}, 0).indices.empty());
  std::vector<float> scores, dscores, loss = {3.0f};
  kernels::balance_loss({.scores = view(scores, {0, 4}),
                         .load = {},
                         .dscores = view(dscores, {0, 4}),
                         .loss = view(loss, {1}),
                         .tokens_per_group = 8,
                         .top_k = 2,
                         .alpha = 1.0f},
                        here());
  kernels::router_z_loss(
      {.logits = view(scores, {0, 4}), .dlogits = view(dscores, {0, 4}), .loss = view(loss, {1}), .beta = 1.0f},
      here());
  CHECK(loss[0] == 3.0f);
}

TEST_CASE("the balance loss follows its formula, its shares held constant", "[kernels][router]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t T = GENERATE(1, 12, 70), E = GENERATE(1, 5, 20), per_group = GENERATE(4, 35, 100);
  const bool has_load = GENERATE(false, true);
  CAPTURE(backend.name, T, E, per_group, has_load);
  const int64_t K = std::min<int64_t>(2, E);
  const float alpha = 0.5f;
  auto scores = uniform(T * E, 1), load = uniform(E, 2);
  float total = 0;
  for (float& value : scores) value = value * 0.45f + 0.5f;
  for (float& value : load) total += value = value + 1.5f;
  for (float& value : load) value /= total;
  const size_t e = size_t(E);
  const Doubles s = doubles(scores);
  // Shares of the unchanged scores, by sorting.
  const std::vector<int32_t> chosen = chosen_of(s, e, size_t(K), 1, 1);
  const int64_t groups = (T + per_group - 1) / per_group;
  const auto tokens = [&](int64_t g) { return double(std::min(T, (g + 1) * per_group) - g * per_group); };
  Doubles f(size_t(groups * E), 0.0);
  for (int64_t g = 0; g < groups; ++g) {
    for (size_t i = 0; i < e && has_load; ++i) f[size_t(g) * e + i] = double(E) * double(load[i]);
  }
  for (size_t at = 0; at < chosen.size() && !has_load; ++at) {
    const int64_t g = int64_t(at) / K / per_group;
    f[size_t(g) * e + size_t(chosen[at])] += double(E) / (double(K) * tokens(g));
  }
  const auto formula = [&](const Doubles& v) {
    double loss = 0;
    for (int64_t t = 0; t < T; ++t) {
      const int64_t g = t / per_group;
      double sum = 0;
      for (size_t i = 0; i < e; ++i) sum += v[size_t(t) * e + i];
      for (size_t i = 0; i < e; ++i) {
        loss += double(alpha) / double(groups) / tokens(g) * f[size_t(g) * e + i] * v[size_t(t) * e + i] / sum;
      }
    }
    return Doubles{loss};
  };
  std::vector<float> loss = {1.0f}, dscores(scores.size(), 0.25f);
  kernels::balance_loss({.scores = view(scores, {T, E}),
                         .load = has_load ? view(load, {E}) : View(),
                         .dscores = view(dscores, {T, E}),
                         .loss = view(loss, {1}),
                         .tokens_per_group = per_group,
                         .top_k = K,
                         .alpha = alpha},
                        here());
  const double tolerance = 4 * std::sqrt(double(T + E)) * kEpsilonF32;
  CHECK_THAT(doubles(loss), NearAll({1.0 + formula(s)[0]}, tolerance));
  Doubles wanted = central_difference(formula, {1.0}, s);
  for (double& value : wanted) value += 0.25;
  CHECK_THAT(doubles(dscores), NearAll(wanted, tolerance + 1e-8, /*floor=*/1.0));
}

TEST_CASE("a balanced batch has a balance loss of alpha, a collapsed one more", "[kernels][router]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  const auto loss_of = [](std::vector<float> scores, int64_t T, int64_t E) {
    std::vector<float> loss = {0.0f}, dscores(scores.size());
    kernels::balance_loss({.scores = view(scores, {T, E}),
                           .load = {},
                           .dscores = view(dscores, {T, E}),
                           .loss = view(loss, {1}),
                           .tokens_per_group = T,
                           .top_k = 1,
                           .alpha = 0.25f},
                          here());
    return loss[0];
  };
  CHECK(loss_of({1, 0, 0, 1}, 2, 2) == 0.25f);
  CHECK(loss_of({1, 0, 1, 0}, 2, 2) == 0.5f);
  CHECK(loss_of({0, 0, 1, 0}, 2, 2) == 0.25f);  // a token without any score adds nothing: P = {1/2, 0}, f = {2, 0}
}

TEST_CASE("the router z-loss follows its formula", "[kernels][router]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t T = GENERATE(1, 67), E = GENERATE(1, 8, 19);
  CAPTURE(backend.name, T, E);
  auto logits = uniform(T * E, 1);
  for (float& value : logits) value *= 4;
  const auto formula = [&](const Doubles& v) {
    double loss = 0;
    for (size_t t = 0; t < size_t(T); ++t) {
      double sum = 0;
      for (size_t i = 0; i < size_t(E); ++i) sum += std::exp(v[t * size_t(E) + i]);
      loss += 0.1 * std::log(sum) * std::log(sum) / double(T);
    }
    return Doubles{loss};
  };
  std::vector<float> loss = {0.5f}, dlogits(logits.size(), 1.0f);
  kernels::router_z_loss(
      {.logits = view(logits, {T, E}), .dlogits = view(dlogits, {T, E}), .loss = view(loss, {1}), .beta = 0.1f},
      here());
  const double tolerance = 4 * std::sqrt(double(T + E)) * kEpsilonF32;
  CHECK_THAT(doubles(loss), NearAll({0.5 + formula(doubles(logits))[0]}, tolerance));
  Doubles wanted = central_difference(formula, {1.0}, doubles(logits));
  for (double& value : wanted) value += 1.0;
  CHECK_THAT(doubles(dlogits), NearAll(wanted, tolerance + 1e-8));
}

TEST_CASE("the router gives the same bits everywhere", "[kernels][router]") {
  const int64_t T = 203, E = 37, K = 4;
  auto logits = uniform(T * E, 1), dweights = uniform(T * K, 3), bias = uniform(E, 4);
  check_same_bits([&](std::string& bytes) {
    for (const ScoreFunction score : {ScoreFunction::kSoftmax, ScoreFunction::kSigmoid}) {
      Routed routed = route(logits, bias, K, {.score = score}, T, {});
      std::vector<float> dscores(logits.size()), dlogits(logits.size()), loss(1);
      kernels::balance_loss({.scores = view(routed.scores, {T, E}),
                             .load = {},
                             .dscores = view(dscores, {T, E}),
                             .loss = view(loss, {1}),
                             .tokens_per_group = 100,
                             .top_k = K,
                             .alpha = 0.3f},
                            here());
      kernels::router_backward({.scores = view(routed.scores, {T, E}),
                                .indices = view(routed.indices, {T, K}),
                                .weights = view(routed.weights, {T, K}),
                                .dweights = view(dweights, {T, K}),
                                .dscores = view(dscores, {T, E}),
                                .dlogits = view(dlogits, {T, E}),
                                .options = {.score = score}},
                               here());
      kernels::router_z_loss(
          {.logits = view(logits, {T, E}), .dlogits = view(dlogits, {T, E}), .loss = view(loss, {1}), .beta = 0.1f},
          here());
      append_bytes(bytes, routed.scores);
      append_bytes(bytes, routed.indices);
      append_bytes(bytes, routed.weights);
      append_bytes(bytes, dscores);
      append_bytes(bytes, dlogits);
      append_bytes(bytes, loss);
    }
  });
}

}  // namespace octet::test
