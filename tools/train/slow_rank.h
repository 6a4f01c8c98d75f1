// Finds the rank that holds the others up: of the ranks of a step all end together, and the slow one is that which does
// not wait.
#pragma once

#include <deque>
#include <optional>
#include <span>
#include <vector>

namespace octet {

struct SlowRank {
  int rank = 0;
  double percent = 0;  // of the time in which every other rank waited for it
  double seconds = 0;  // over which that was seen
};

class SlowRankWatch {
 public:
  // One slow moment names nobody: the same rank must be the slowest in so many intervals one after the other, and in
  // each of them by so much of the time. What takes less than an interval's least seconds is joined to what follows:
  // over a few milliseconds an operating system alone makes a rank slow.
  static constexpr size_t kIntervals = 8;
  static constexpr double kLeastPercent = 10, kLeastSeconds = 0.25;

  // Some steps: the seconds that each rank worked in them, and those that they took. The rank that is slow now, with
  // its mean over the last intervals; the last answer again while an interval goes on.
  std::optional<SlowRank> add(std::span<const double> worked_s, double seconds);

 private:
  SlowRank slowest_of_interval() const;
  std::optional<SlowRank> slow_in_each() const;

  std::deque<SlowRank> slowest_;  // of the last intervals
  std::vector<double> worked_s_;  // of the interval that goes on
  double interval_s_ = 0;
  std::optional<SlowRank> slow_;
};

}  // namespace octet
