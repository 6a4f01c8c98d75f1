#include "tools/train/slow_rank.h"

#include <algorithm>

namespace octet {

std::optional<SlowRank> SlowRankWatch::add(std::span<const double> worked_s, double seconds) {
  if (worked_s.size() < 2 || !(seconds > 0)) return std::nullopt;
  worked_s_.resize(worked_s.size());
  for (size_t rank = 0; rank < worked_s.size(); ++rank) worked_s_[rank] += worked_s[rank];
  interval_s_ += seconds;
  if (interval_s_ < kLeastSeconds) return slow_;
  slowest_.push_back(slowest_of_interval());
  if (slowest_.size() > kIntervals) slowest_.pop_front();
  worked_s_.clear(), interval_s_ = 0;
  slow_ = slow_in_each();
  return slow_;
}

SlowRank SlowRankWatch::slowest_of_interval() const {
  const auto slowest = std::max_element(worked_s_.begin(), worked_s_.end());
  double next = 0;  // of the others, that which waited least
  for (auto other = worked_s_.begin(); other != worked_s_.end(); ++other) {
    if (other != slowest) next = std::max(next, *other);
  }
  return {.rank = int(slowest - worked_s_.begin()),
          .percent = 100 * (*slowest - next) / interval_s_,
          .seconds = interval_s_};
}

std::optional<SlowRank> SlowRankWatch::slow_in_each() const {
  if (slowest_.size() < kIntervals) return std::nullopt;
  SlowRank mean{.rank = slowest_.back().rank};
  for (const SlowRank& each : slowest_) {
    if (each.rank != mean.rank || each.percent < kLeastPercent) return std::nullopt;
    mean.percent += each.percent / double(kIntervals);
    mean.seconds += each.seconds;
  }
  return mean;
}

}  // namespace octet
