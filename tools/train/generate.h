// Continues a text with a model, token by token, from a key-value cache.
#pragma once

#include <functional>
#include <string_view>

#include "core/nn/transformer.h"
#include "tools/data/tokenizer.h"
#include "tools/train/sampler.h"

namespace octet {

struct GenerateRequest {
  std::string_view prompt;  // empty: starts from the end-of-text token
  int64_t tokens = 64;      // at most; the end-of-text token ends sooner
  SamplingOptions sampling;
  uint64_t seed = 1;
};

// Calls piece(bytes) for each token as it comes; the bytes of a character may come in several pieces. The prompt is not
// repeated. Throws kArgument where prompt and tokens together are longer than the model's rotary table.
void generate(Transformer& model, const Tokenizer& tokenizer, const GenerateRequest& request,
              const std::function<void(std::string_view bytes)>& piece);

}  // namespace octet
