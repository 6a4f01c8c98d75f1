// y = a + b, rounded once.
#pragma once

#include "core/autograd/tape.h"

namespace octet {

// a, b, y: one shape and dtype. The gradient goes to both as it is.
Tensor add(const Tensor& a, const Tensor& b);

}  // namespace octet
