// Which rank holds the others up: from made-up times, and through waits that are measured.
#include "tools/train/slow_rank.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <thread>

#include "parallel/local_communicator.h"
#include "tools/train/timed_communicator.h"

namespace octet::test {

TEST_CASE("a rank is named when it is the slowest again and again", "[train][slow]") {
  SlowRankWatch watch;
  constexpr int kEnough = int(SlowRankWatch::kIntervals);
  const std::vector<double> slow = {6, 5, 8, 1}, even = {6, 6, 6, 6}, other = {9, 2, 2, 2}, barely = {6, 5, 6.9, 1};
  const auto add_often = [&](const std::vector<double>& worked, int times) {
    std::optional<SlowRank> found;
    for (int i = 0; i < times; ++i) found = watch.add(worked, 10);
    return found;
  };
  CHECK_FALSE(add_often(slow, kEnough - 1));
  std::optional<SlowRank> found = watch.add(slow, 10);
  REQUIRE(found);
  CHECK(found->rank == 2);
  CHECK(found->percent == Approx(20));  // 8 - 6 of 10 seconds
  CHECK(found->seconds == Approx(10 * kEnough));
  const std::vector<double> slower = {6, 5, 10, 1};
  found = watch.add(slower, 10);
  REQUIRE(found);
  CHECK(found->percent == Approx((7 * 20 + 40) / 8.0));
  for (const std::vector<double>& once : {even, other, barely}) {
    CHECK_FALSE(watch.add(once, 10));
    CHECK_FALSE(add_often(slow, kEnough - 1));
    CHECK(watch.add(slow, 10));
  }
  CHECK_FALSE(add_often(even, 3 * kEnough));
  CHECK_FALSE(add_often(std::vector<double>{5}, 3 * kEnough));  // a rank by itself
  CHECK_FALSE(watch.add(slow, 0));
}

TEST_CASE("steps of milliseconds name a rank only when they add up to seconds", "[train][slow]") {
  SlowRankWatch watch;
  constexpr double kStep = 1.0 / 128;
  const std::vector<double> slow = {kStep / 8, kStep}, even = {kStep, kStep};
  const double least = SlowRankWatch::kLeastSeconds;
  const int needed = int(SlowRankWatch::kIntervals) * int(std::ceil(least / kStep));
  std::optional<SlowRank> found;
  for (int step = 0; step < needed - 1; ++step) {
    found = watch.add(slow, kStep);
    CHECK_FALSE(found);
  }
  found = watch.add(slow, kStep);
  REQUIRE(found);
  CHECK(found->rank == 1);
  CHECK(found->percent == Approx(87.5));
  CHECK(watch.add(even, kStep));  // an interval has only begun
  for (double s = 0; s < least; s += kStep) found = watch.add(even, kStep);
  CHECK_FALSE(found);
}

TEST_CASE("a rank that waits in a communicator or its groups is seen to wait", "[train][slow]") {
  constexpr auto kLate = std::chrono::milliseconds(150);
  const auto errors = run_local_ranks(2, {}, [&](Communicator& world) {
    TimedCommunicator timed(world, real_clock());
    const int both[] = {0, 1};
    const auto group = timed.group(both, "group");
    const double before = timed.seconds_waited();
    for (Communicator* each : {static_cast<Communicator*>(&timed), group.get()}) {
      if (world.rank() == 1) std::this_thread::sleep_for(kLate);
      double sum = 1 + world.rank();
      each->all_reduce({&sum, 1});
      require(sum == 3, "a sum of {}", sum);
    }
    const double waited = timed.seconds_waited() - before, late = std::chrono::duration<double>(kLate).count();
    if (world.rank() == 0) require(waited > 1.5 * late, "rank 0 waited {} s; wanted about {}", waited, 2 * late);
  });
  rethrow_first(errors);
}

}  // namespace octet::test
