// Initial weights: normal numbers from a stream named after the tensor on disk, so that they are the same however the
// tensors lie in memory or on ranks.
#pragma once

#include "core/autograd/parameter.h"

namespace octet {

// master[i] = std * normal(i) of RandomStream(seed, "init/" + name) for each piece, i counted inside the piece.
void init_normal(Parameter& weight, uint64_t seed, float std);
void init_ones(Parameter& weight);

}  // namespace octet
