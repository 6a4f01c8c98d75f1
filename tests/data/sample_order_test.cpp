#include "tools/data/sample_order.h"

#include <algorithm>
#include <set>

#include "tests/data/text_support.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {

TEST_CASE("a permutation meets every number once", "[data][sample_order]") {
  const uint64_t size = GENERATE(1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4097, 100'000);
  const uint64_t key = GENERATE(0, 1, 0xfedcba9876543210);
  const Permutation permutation(size, key);
  std::vector<bool> seen(size, false);
  for (uint64_t i = 0; i < size; ++i) {
    const uint64_t to = permutation(i);
    REQUIRE(to < size);
    REQUIRE_FALSE(seen[to]);
    seen[to] = true;
  }
}

TEST_CASE("a permutation mixes", "[data][sample_order]") {
  // Over n numbers, a random permutation keeps about 1 in place, has about 1 pair of neighbours that stay neighbours,
  // and its correlation with the order it came from is about 1 / sqrt(n) = 0.01.
  const uint64_t n = 10'000;
  const Permutation permutation(n, 42);
  int fixed = 0, neighbours = 0;
  double covariance = 0;
  for (uint64_t i = 0; i < n; ++i) {
    fixed += permutation(i) == i;
    neighbours += i > 0 && permutation(i) == permutation(i - 1) + 1;
    covariance += (double(i) - double(n) / 2) * (double(permutation(i)) - double(n) / 2);
  }
  CHECK(fixed < 10);
  CHECK(neighbours < 10);
  CHECK(std::abs(covariance / (double(n) * double(n) * double(n) / 12)) < 0.05);
}

TEST_CASE("permutations of sizes no memory could hold stay in range", "[data][sample_order]") {
  for (const uint64_t size : {(uint64_t(1) << 40) + 1, uint64_t(1) << 61, (uint64_t(1) << 62) - 1}) {
    const Permutation permutation(size, 5);
    std::set<uint64_t> seen;
    for (uint64_t i = 0; i < 1000; ++i) seen.insert(permutation(size - 1 - i * 1'000'003));
    CHECK(seen.size() == 1000);
    CHECK(*seen.rbegin() < size);
  }
  CHECK(error_of([] { Permutation(0, 1); }).kind() == ErrorKind::kArgument);
}

TEST_CASE("an epoch reads every window once, and each epoch in another order", "[data][sample_order]") {
  const SampleOrder order(/*num_tokens=*/1003, /*seq_len=*/10, /*seed=*/7);
  REQUIRE(order.samples_per_epoch() == 100);
  std::vector<std::vector<int64_t>> epochs(3);
  for (int64_t i = 0; i < 300; ++i) {
    CHECK(order.epoch_of(i) == i / 100);
    epochs[size_t(i / 100)].push_back(order.first_token(i));
  }
  for (const auto& epoch : epochs) {
    auto sorted = epoch;
    std::sort(sorted.begin(), sorted.end());
    for (int64_t w = 0; w < 100; ++w) CHECK(sorted[size_t(w)] == w * 10);
  }
  CHECK(epochs[0] != epochs[1]);
  CHECK(epochs[1] != epochs[2]);
}

TEST_CASE("the order is a function of seed, data and sample alone", "[data][sample_order]") {
  const SampleOrder a(100'001, 100, 7), b(100'001, 100, 7), other_seed(100'001, 100, 8);
  int same = 0;
  for (int64_t i = 2999; i >= 0; --i) {  // backwards: no state
    CHECK(a.first_token(i) == b.first_token(i));
    CHECK(a.cursor(i) == b.cursor(i));
    same += a.first_token(i) == other_seed.first_token(i);
  }
  CHECK(same < 30);
  const SampleCursor cursor = a.cursor(2500);
  CHECK(cursor.epoch == 2);
  CHECK(cursor.sample == 2500);
  CHECK(cursor.permutation_key != a.cursor(1500).permutation_key);
  CHECK(cursor.permutation_key != other_seed.cursor(2500).permutation_key);
  // Computed by another program from the header's description: a checkpoint that is resumed by a later program must
  // read the same samples.
  CHECK(a.first_token(0) == 51700);
  CHECK(a.first_token(1) == 37400);
  CHECK(a.first_token(2500) == 38200);
}

TEST_CASE("validation reads in order", "[data][sample_order]") {
  const SampleOrder order = SampleOrder::in_order(35, 10);
  CHECK(order.samples_per_epoch() == 3);
  for (int64_t i = 0; i < 7; ++i) CHECK(order.first_token(i) == i % 3 * 10);
}

TEST_CASE("data too short for one sample is a data error", "[data][sample_order]") {
  CHECK(SampleOrder(11, 10, 1).samples_per_epoch() == 1);
  const Error error = error_of([] { SampleOrder(10, 10, 1); });
  CHECK(error.kind() == ErrorKind::kData);
  CHECK_THAT(error.report().what, Catch::Contains("10 tokens; wanted at least 11"));
  CHECK(error_of([] { SampleOrder(10, 0, 1); }).kind() == ErrorKind::kArgument);
  CHECK(error_of([] { SampleOrder(100, 10, 1).first_token(-1); }).kind() == ErrorKind::kArgument);
}

}  // namespace octet::test
