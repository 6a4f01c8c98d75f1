#include "parallel/ordered_sum.h"

#include <cstring>

namespace octet {
namespace {

// Elements that stay in the first cache while one array after the other is added to them.
constexpr int64_t kBlock = 2048;
// Elements that a thread takes at a time.
constexpr int64_t kGrain = kBlock * 16;

template <class Stored, class Sum>
void sum_block(std::span<const std::byte* const> from, int64_t begin, int64_t count, std::byte* to) {
  Sum sum[kBlock];
  for (size_t r = 0; r < from.size(); ++r) {
    const Stored* x = reinterpret_cast<const Stored*>(from[r]) + begin;
    if (r == 0) {
      for (int64_t i = 0; i < count; ++i) sum[i] = Sum(x[i]);
    } else {
      for (int64_t i = 0; i < count; ++i) sum[i] += Sum(x[i]);
    }
  }
  Stored* y = reinterpret_cast<Stored*>(to) + begin;
  for (int64_t i = 0; i < count; ++i) y[i] = Stored(sum[i]);
}

template <class Stored, class Sum>
void sum_all(std::span<const std::byte* const> from, int64_t n, std::byte* to, Stream& stream) {
  stream.parallel_chunks(n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += kBlock) {
      sum_block<Stored, Sum>(from, at, std::min(kBlock, end - at), to);
    }
  });
}

}  // namespace

int64_t size_of(CollectiveCall::Element element) {
  switch (element) {
    case CollectiveCall::Element::kFloat32:
      return 4;
    case CollectiveCall::Element::kBFloat16:
      return 2;
    case CollectiveCall::Element::kFloat64:
      return 8;
    case CollectiveCall::Element::kBytes:
      break;
  }
  return 1;
}

void ordered_sum(CollectiveCall::Element element, std::span<const std::byte* const> from, int64_t n, std::byte* to,
                 Stream& stream) {
  switch (element) {
    case CollectiveCall::Element::kFloat32:
      return sum_all<float, float>(from, n, to, stream);
    case CollectiveCall::Element::kBFloat16:
      return sum_all<bfloat16, float>(from, n, to, stream);
    case CollectiveCall::Element::kFloat64:
      return sum_all<double, double>(from, n, to, stream);
    case CollectiveCall::Element::kBytes:
      break;
  }
  require(false, "ordered_sum: bytes cannot be summed; wanted float32, bfloat16 or float64");
}

}  // namespace octet
