// What the repeats of a measurement say together.
#pragma once

#include <algorithm>
#include <vector>

namespace octet {

struct Timing {
  double median = 0, least = 0, most = 0;
  double spread() const { return (most - least) / median; }
};
inline Timing timing_of(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {.median = seconds[seconds.size() / 2], .least = seconds.front(), .most = seconds.back()};
}

}  // namespace octet
