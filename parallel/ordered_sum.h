// The sum of one array per rank, in the order of the ranks.
//   to[i] = ((from[0][i] + from[1][i]) + from[2][i]) + ...
// float32 and float64 in their own precision; bfloat16 in float32, rounded once at the end. `to` may be one of the
// arrays. There is at least one array, and n may be 0.
#pragma once

#include <span>

#include "core/base/stream.h"
#include "parallel/communicator.h"

namespace octet {

void ordered_sum(CollectiveCall::Element element, std::span<const std::byte* const> from, int64_t n, std::byte* to,
                 Stream& stream);

int64_t size_of(CollectiveCall::Element element);  // bytes; 1 for kBytes

}  // namespace octet
