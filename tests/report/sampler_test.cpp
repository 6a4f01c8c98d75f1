#include "tools/train/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/support/numeric.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();

// The definition of tools/train/sampler.h by repeated search for the largest.
std::vector<Candidate> reference(const std::vector<float>& logits, double temperature, double top_p) {
  const double max = *std::max_element(logits.begin(), logits.end());
  Doubles p;
  for (const float logit : logits) p.push_back(std::exp((double(logit) - max) / temperature));
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  std::vector<Candidate> chosen;
  double sum = 0;
  std::vector<bool> taken(logits.size(), false);
  for (size_t n = 0; n < logits.size(); ++n) {
    size_t best = logits.size();
    for (size_t v = 0; v < logits.size(); ++v) {
      if (!taken[v] && (best == logits.size() || logits[v] > logits[best])) best = v;
    }
    if (p[best] == 0) break;
    taken[best] = true;
    chosen.push_back({int32_t(best), p[best] / total});
    sum += p[best] / total;
    if (top_p < 1 && sum >= top_p) break;
  }
  return chosen;
}

ErrorKind kind_of_error(const std::vector<float>& logits, SamplingOptions options) {
  return error_of([&] { sample_token(logits, options, RandomStream(1, "sample"), 0); }).kind();
}

}  // namespace

TEST_CASE("the candidates are those of the definition", "[sampler]") {
  const int64_t V = GENERATE(1, 2, 17, 300);
  const float temperature = GENERATE(0.1f, 1.0f, 3.0f), top_p = GENERATE(0.0f, 0.3f, 0.9f, 1.0f);
  CAPTURE(V, temperature, top_p);
  std::vector<float> logits = uniform(V, 7);
  for (float& logit : logits) logit = std::round(logit * 8);  // many ties
  if (V > 2) logits[1] = -kInfinity;
  const auto got = candidates(logits, {temperature, top_p}), want = reference(logits, temperature, top_p);
  REQUIRE(got.size() == want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    CHECK(got[i].token == want[i].token);
    CHECK(got[i].probability == Approx(want[i].probability).epsilon(1e-12));
  }
}

TEST_CASE("tokens are drawn as often as their probability says", "[sampler]") {
  const float top_p = GENERATE(0.85f, 1.0f);
  const std::vector<float> logits = {0.0f, 1.0f, 2.0f, -1.0f, -kInfinity, 1.0f};
  const RandomStream stream(11, "sample");
  constexpr int kDraws = 40000;
  std::vector<int> counts(logits.size(), 0);
  for (int n = 0; n < kDraws; ++n) ++counts[size_t(sample_token(logits, {1.0f, top_p}, stream, uint64_t(n)))];
  Doubles want(logits.size(), 0.0);
  double mass = 0;
  for (const Candidate& candidate : reference(logits, 1.0, top_p)) mass += candidate.probability;
  for (const Candidate& candidate : reference(logits, 1.0, top_p)) {
    want[size_t(candidate.token)] = candidate.probability / mass;
  }
  for (size_t v = 0; v < logits.size(); ++v) {
    CAPTURE(v);
    if (want[v] == 0) {
      CHECK(counts[v] == 0);
    } else {  // five deviations of a binomial count; the stream is fixed, so this passes always or never
      CHECK(std::abs(counts[v] - kDraws * want[v]) < 5 * std::sqrt(kDraws * want[v]));
    }
  }
}

TEST_CASE("a draw depends on seed, position and logits alone", "[sampler]") {
  const std::vector<float> logits = uniform(64, 3);
  std::vector<int32_t> first, again, other_seed;
  for (uint64_t n = 0; n < 50; ++n) first.push_back(sample_token(logits, {}, RandomStream(1, "sample"), n));
  for (uint64_t n = 50; n-- > 0;) again.insert(again.begin(), sample_token(logits, {}, RandomStream(1, "sample"), n));
  for (uint64_t n = 0; n < 50; ++n) other_seed.push_back(sample_token(logits, {}, RandomStream(2, "sample"), n));
  CHECK(first == again);
  CHECK(first != other_seed);
}

TEST_CASE("temperature 0 and top-p 0 take the lowest of the most probable tokens", "[sampler]") {
  const std::vector<float> logits = {-3.0f, 5.0f, 1.0f, 5.0f};
  const RandomStream stream(1, "sample");
  for (uint64_t n = 0; n < 20; ++n) {
    CHECK(sample_token(logits, {0.0f, 1.0f}, stream, n) == 1);
    CHECK(sample_token(logits, {1.0f, 0.0f}, stream, n) == 1);
    CHECK(sample_token(logits, {1e-45f, 1.0f}, stream, n) !=
          2);  // the least float there is: only the two ties are left
  }
  CHECK(sample_token(std::vector<float>{2.5f}, {1.0f, 0.5f}, stream, 0) == 0);
}

TEST_CASE("logits of any size give a token", "[sampler]") {
  constexpr float kMax = std::numeric_limits<float>::max();
  const RandomStream stream(1, "sample");
  CHECK(sample_token(std::vector<float>{-kMax, kMax, 0.0f}, {}, stream, 3) == 1);
  CHECK(sample_token(std::vector<float>{-kMax, -kInfinity}, {}, stream, 3) == 0);
  CHECK(sample_token(std::vector<float>{-kInfinity, -5.0f, -kInfinity}, {kMax, 1.0f}, stream, 3) == 1);
}

TEST_CASE("broken logits and options are errors", "[sampler]") {
  const float temperature = GENERATE(0.0f, 1.0f);
  CHECK(kind_of_error({0.0f, kNaN}, {temperature, 1.0f}) == ErrorKind::kNumeric);
  CHECK(kind_of_error({kNaN, 0.0f}, {temperature, 0.5f}) == ErrorKind::kNumeric);
  CHECK(kind_of_error({kInfinity, 0.0f}, {temperature, 1.0f}) == ErrorKind::kNumeric);
  CHECK(kind_of_error({-kInfinity, -kInfinity}, {temperature, 1.0f}) == ErrorKind::kNumeric);
  CHECK(kind_of_error({}, {temperature, 1.0f}) == ErrorKind::kArgument);
  for (const SamplingOptions bad :
       {SamplingOptions{-1.0f, 1.0f}, SamplingOptions{kNaN, 1.0f}, SamplingOptions{kInfinity, 1.0f},
        SamplingOptions{1.0f, -0.1f}, SamplingOptions{1.0f, 1.1f}, SamplingOptions{1.0f, kNaN}}) {
    CHECK(kind_of_error({0.0f}, bad) == ErrorKind::kArgument);
  }
}

}  // namespace octet::test
