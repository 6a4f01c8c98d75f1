// What one run took, and what the repeats of a measurement say together.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "core/base/clock.h"
#include "kernels/device_runtime.h"

namespace octet {

struct Timing {
  double median = 0, least = 0, most = 0;
  double spread() const { return (most - least) / median; }
};
inline Timing timing_of(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {.median = seconds[seconds.size() / 2], .least = seconds.front(), .most = seconds.back()};
}

// By the clock of the stream's device.
inline double seconds_of(const std::function<void()>& run, Stream& stream) {
  if (stream.device().is_cpu()) {
    const int64_t begin = real_clock().monotonic_ns();
    run();
    return double(real_clock().monotonic_ns() - begin) * 1e-9;
  }
  gpu::Stopwatch watch;
  watch.start(stream);
  run();
  watch.stop(stream);
  return watch.seconds();
}

}  // namespace octet
