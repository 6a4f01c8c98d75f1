// Chooses the next token from a row of logits.
//   p[v] = exp((logits[v] - max) / temperature) / sum, in float64; -inf is a token that cannot be chosen
//   The candidates are the shortest prefix of the tokens, most probable first and equal ones lowest id first, whose
//   probabilities sum to at least top_p. One of them is drawn in proportion to p, from a single uniform number.
// temperature 0 and top_p 0 both take the most probable token, the lowest id among equals. NaN, +inf and a row of
// nothing but -inf are numeric errors: they come from a broken model, and any choice would hide it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/random.h"

namespace octet {

struct SamplingOptions {
  float temperature = 1.0f;  // 0 or more
  float top_p = 1.0f;        // 0 to 1
  void validate() const;
};

struct Candidate {
  int32_t token;
  double probability;  // among all tokens, not among the candidates
};

// The candidates in the order in which they are drawn; temperature above 0.
std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options);

// The token at place `position` of a text. `stream` is RandomStream(seed, "sample"): the same seed, position and logits
// give the same token, whatever was sampled before.
int32_t sample_token(std::span<const float> logits, const SamplingOptions& options, const RandomStream& stream,
                     uint64_t position);

}  // namespace octet
