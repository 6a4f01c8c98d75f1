// y[t] = weight[ids[t]].
#pragma once

#include "core/autograd/parameter.h"
#include "core/autograd/tape.h"

namespace octet {

// ids: [T] int32 in [0, V); weight: [V, D] float32 or bfloat16; y: [T, D] as weight. The first op of a tape.
Tensor embedding(const Tensor& ids, Parameter& weight);

}  // namespace octet
