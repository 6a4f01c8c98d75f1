#include "tools/train/sampler.h"

#include <algorithm>
#include <cmath>

#include "core/base/error.h"

namespace octet {
namespace {

// The place of the largest logit, the lowest one among equals.
size_t largest(std::span<const float> logits) {
  require(!logits.empty(), "sample: no logits; wanted one for each token of the vocabulary");
  size_t best = 0;
  for (size_t v = 0; v < logits.size(); ++v) {
    if (std::isnan(logits[v]) || logits[v] == INFINITY) {
      fail(ErrorKind::kNumeric,
           {.what = fmt::format("the logit of token {} is {}; wanted a finite number", v, logits[v]),
            .where = fmt::format("sampling, {} logits", logits.size()),
            .why = "a token drawn from it would mean nothing",
            .fix = "sample from an earlier checkpoint; `octet ckpt verify` finds damaged ones"});
    }
    if (logits[v] > logits[best]) best = v;
  }
  if (logits[best] == -INFINITY) {
    fail(ErrorKind::kNumeric,
         {.what = fmt::format("all {} logits are -inf; wanted at least one token that can be chosen", logits.size()),
          .where = "sampling",
          .why = "no token has a probability",
          .fix = "sample from an earlier checkpoint; `octet ckpt verify` finds damaged ones"});
  }
  return best;
}

// Hands tokens to `take`, most probable first, until it returns false. A heap, since a few tokens of many are taken.
template <class Take>
void by_probability(std::span<const float> logits, Take&& take) {
  std::vector<int32_t> heap(logits.size());
  for (size_t v = 0; v < heap.size(); ++v) heap[v] = int32_t(v);
  const auto later = [&](int32_t a, int32_t b) {
    const float x = logits[size_t(a)], y = logits[size_t(b)];
    return x != y ? x < y : a > b;
  };
  std::make_heap(heap.begin(), heap.end(), later);
  for (auto end = heap.end(); end != heap.begin(); --end) {
    std::pop_heap(heap.begin(), end, later);
    if (!take(*(end - 1))) return;
  }
}

struct Weights {
  double max, temperature, total;
  double of(float logit) const { return std::exp((double(logit) - max) / temperature); }
};

Weights weights_of(std::span<const float> logits, float temperature) {
  Weights weights{.max = double(logits[largest(logits)]), .temperature = double(temperature), .total = 0.0};
  for (const float logit : logits) weights.total += weights.of(logit);
  return weights;
}

}  // namespace

void SamplingOptions::validate() const {
  require(std::isfinite(temperature) && temperature >= 0, "temperature is {}; wanted a number from 0 up", temperature);
  require(top_p >= 0 && top_p <= 1, "top-p is {}; wanted a number from 0 to 1", top_p);
}

std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options) {
  options.validate();
  require(options.temperature > 0, "candidates: temperature is 0, which draws nothing; wanted more than 0");
  const Weights weights = weights_of(logits, options.temperature);
  std::vector<Candidate> chosen;
  double sum = 0;
  by_probability(logits, [&](int32_t token) {
    const double weight = weights.of(logits[size_t(token)]);
    if (weight == 0) return false;
    chosen.push_back({token, weight / weights.total});
    sum += weight;
    return options.top_p == 1.0f || sum < double(options.top_p) * weights.total;
  });
  return chosen;
}

int32_t sample_token(std::span<const float> logits, const SamplingOptions& options, const RandomStream& stream,
                     uint64_t position) {
  options.validate();
  if (options.temperature == 0 || options.top_p == 0) return int32_t(largest(logits));
  const double uniform = double(stream.bits(position) >> 11) * 0x1p-53;  // [0, 1)
  if (options.top_p == 1.0f) {
    // The whole vocabulary: stop at the drawn token instead of sorting those behind it.
    const Weights weights = weights_of(logits, options.temperature);
    const double at = uniform * weights.total;
    double sum = 0;
    int32_t drawn = -1;
    by_probability(logits, [&](int32_t token) {
      const double weight = weights.of(logits[size_t(token)]);
      if (weight == 0) return false;  // rounding put `at` at the very end of the sum: the last token that counts
      drawn = token;
      sum += weight;
      return sum <= at;
    });
    return drawn;
  }
  const std::vector<Candidate> chosen = candidates(logits, options);
  double mass = 0;
  for (const Candidate& candidate : chosen) mass += candidate.probability;
  double sum = 0;
  for (const Candidate& candidate : chosen) {
    sum += candidate.probability;
    if (sum > uniform * mass) return candidate.token;
  }
  return chosen.back().token;
}

}  // namespace octet
