#include "core/base/thread_pool.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "core/base/error.h"

namespace octet {

TEST_CASE("a loop visits each index once, in chunks that do not depend on the threads", "[base][thread_pool]") {
  const int threads = GENERATE(1, 2, 5);
  const int64_t n = GENERATE(0, 1, 7, 1000), grain = GENERATE(1, 3, 4096);
  ThreadPool pool(threads);
  for (int repeat = 0; repeat < 50; ++repeat) {
    std::vector<int> visits(size_t(n), 0);
    std::atomic<bool> aligned{true};
    pool.for_chunks(n, grain, [&](int64_t begin, int64_t end) {
      if (begin % grain != 0 || end != std::min(begin + grain, n)) aligned = false;
      for (int64_t i = begin; i < end; ++i) ++visits[size_t(i)];
    });
    REQUIRE(aligned);
    REQUIRE(visits == std::vector<int>(size_t(n), 1));
  }
}

TEST_CASE("a thread begins with its own share of a loop, and helps the others", "[base][thread_pool]") {
  constexpr int kThreads = 3;
  ThreadPool pool(kThreads);
  // The first chunk of each thread, and who took which: nobody goes on before all have begun.
  const auto run = [&](int64_t n, int64_t grain, std::span<const int64_t> ends, auto&& slow) {
    std::vector<std::thread::id> taken_by(size_t((n + grain - 1) / grain));
    std::vector<int64_t> first_chunks;
    std::mutex mutex;
    std::atomic<int> begun{0};
    std::atomic<int64_t> left = int64_t(taken_by.size());
    pool.for_chunks(n, grain, ends, [&](int64_t begin, int64_t) {
      const auto me = std::this_thread::get_id();
      {
        const std::lock_guard lock(mutex);
        if (std::find(taken_by.begin(), taken_by.end(), me) == taken_by.end()) {
          first_chunks.push_back(begin / grain);
          ++begun;
        }
        taken_by[size_t(begin / grain)] = me;
      }
      while (begun < kThreads) std::this_thread::yield();
      --left;
      while (slow(begin / grain) && left > 0) std::this_thread::yield();
    });
    std::sort(first_chunks.begin(), first_chunks.end());
    return std::pair(first_chunks, taken_by);
  };
  const auto none = [](int64_t) { return false; };
  CHECK(run(30, 1, {}, none).first == std::vector<int64_t>{0, 10, 20});
  CHECK(run(58, 2, {}, none).first == std::vector<int64_t>{0, 9, 19});
  CHECK(run(30, 1, std::vector<int64_t>{1, 28, 30}, none).first == std::vector<int64_t>{0, 1, 28});
  // The thread of the middle share stays in its first chunk until the others have done the rest.
  const auto [first_chunks, taken_by] = run(30, 1, {}, [](int64_t chunk) { return chunk == 10; });
  CHECK(first_chunks == std::vector<int64_t>{0, 10, 20});
  CHECK(std::count(taken_by.begin(), taken_by.end(), taken_by[10]) == 1);
}

TEST_CASE("shares that are not those of the pool's threads are refused", "[base][thread_pool]") {
  ThreadPool pool(2);
  const auto run = [&](const std::vector<int64_t>& ends) { pool.for_chunks(10, 1, ends, [](int64_t, int64_t) {}); };
  CHECK_NOTHROW(run({0, 10}));
  CHECK_THROWS_AS(run({10}), Error);
  CHECK_THROWS_AS(run({5, 9}), Error);
}

TEST_CASE("an exception in a loop reaches the caller and the pool goes on", "[base][thread_pool]") {
  ThreadPool pool(3);
  CHECK_THROWS_AS(pool.for_chunks(100, 1,
                                  [](int64_t begin, int64_t) {
                                    if (begin == 50) throw std::runtime_error("fifty");
                                  }),
                  std::runtime_error);
  std::atomic<int> sum{0};
  pool.for_chunks(10, 1, [&](int64_t begin, int64_t) { sum += int(begin); });
  CHECK(sum == 45);
}

TEST_CASE("a loop inside a loop runs", "[base][thread_pool]") {
  ThreadPool pool(2);
  std::atomic<int> count{0};
  pool.for_chunks(8, 1, [&](int64_t, int64_t) { pool.for_chunks(8, 1, [&](int64_t, int64_t) { ++count; }); });
  CHECK(count == 64);
}

}  // namespace octet
