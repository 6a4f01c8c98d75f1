#include "tools/train/slow_rank.h"

#include <algorithm>

namespace octet {

std::optional<SlowRank> SlowRankWatch::add(std::span<const double> worked_s, double interval_s) {
  if (worked_s.size() < 2 || !(interval_s > 0)) return std::nullopt;
  const auto slowest = std::max_element(worked_s.begin(), worked_s.end());
  double next = 0;  // of the others, that which waited least
  for (auto other = worked_s.begin(); other != worked_s.end(); ++other) {
    if (other != slowest) next = std::max(next, *other);
  }
  slowest_.push_back({int(slowest - worked_s.begin()), 100 * (*slowest - next) / interval_s});
  if (slowest_.size() > kIntervals) slowest_.pop_front();
  if (slowest_.size() < kIntervals) return std::nullopt;
  SlowRank mean{.rank = slowest_.back().rank};
  for (const SlowRank& each : slowest_) {
    if (each.rank != mean.rank || each.percent < kLeastPercent) return std::nullopt;
    mean.percent += each.percent / double(kIntervals);
  }
  return mean;
}

}  // namespace octet
