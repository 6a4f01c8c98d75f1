// Finds the rank that holds the others up: of the ranks of a step all end together, and the slow one is that which does
// not wait.
#pragma once

#include <deque>
#include <optional>
#include <span>

namespace octet {

struct SlowRank {
  int rank = 0;
  double percent = 0;  // of the time in which every other rank waited for it
};

class SlowRankWatch {
 public:
  // One slow moment names nobody: the same rank must be the slowest in so many intervals one after the other, and in
  // each of them by so much of the time.
  static constexpr size_t kIntervals = 8;
  static constexpr double kLeastPercent = 10;

  // An interval of some steps: the seconds that each rank worked in it, and those that it took. The rank that is slow
  // now, with its mean over the last intervals.
  std::optional<SlowRank> add(std::span<const double> worked_s, double interval_s);

 private:
  std::deque<SlowRank> slowest_;  // of the last intervals
};

}  // namespace octet
