// Tokens for what needs no text: benches and `octet verify`.
#pragma once

#include <cstdint>

#include "tools/data/dataset.h"

namespace octet {

// Sequences of a chain that a model can learn: three times of four the next token is a function of the last one. Batch
// `number` is a pure function of all the arguments.
Batch made_up_batch(uint64_t seed, int64_t number, int64_t sequences, int64_t seq_len, int64_t vocab_size);

}  // namespace octet
