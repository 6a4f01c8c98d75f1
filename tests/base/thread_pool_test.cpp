#include "core/base/thread_pool.h"

#include <catch2/catch.hpp>
#include <numeric>
#include <stdexcept>
#include <vector>

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
