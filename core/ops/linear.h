// y = x w^T, no bias.
#pragma once

#include "core/ops/product.h"

namespace octet {

// input: [T, K]; weight: [N, K] in any form; y: [T, N] of dtype out (float32 for the router's logits, else the
// activation dtype). dw = dy^T x is added to weight.grad().
Tensor linear(const LinearInput& input, Parameter& weight, DType out);

}  // namespace octet
