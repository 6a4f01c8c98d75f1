#include "parallel/gpu_operations.h"

#include <catch2/catch.hpp>

#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

// How far a stream has come: operation i has begun at 2 i and is done at 2 i + 1.
struct GivenOperations {
  int place = -1;
  GpuOperations operations{3.0};

  void give(int i, const std::string& what) {
    operations.add(
        what, [this, i] { return place >= 2 * i; }, [this, i] { return place >= 2 * i + 1; });
  }
};

}  // namespace

TEST_CASE("a GPU that stays in an operation is found after the deadline, and named", "[parallel][gpu_operations]") {
  GivenOperations given;
  given.operations.look(0.0);  // nothing was given
  given.give(0, "all_reduce of group world");
  given.give(1, "all_to_all of group ep");
  given.operations.look(100.0);  // it works on something else
  given.place = 0;
  given.operations.look(200.0);
  given.operations.look(202.9);
  const Error error = error_of([&] { given.operations.look(203.0); });
  CHECK(error.code() == 8);
  CHECK_THAT(error.report().what, Catch::Contains("all_reduce of group world") && Catch::Contains("3.0 s"));
}

TEST_CASE("each operation has a time of its own", "[parallel][gpu_operations]") {
  GivenOperations given;
  given.give(0, "first");
  given.give(1, "second");
  given.place = 0;
  given.operations.look(1.0);
  given.place = 2;  // done, and in the second
  given.operations.look(9.0);
  CHECK(given.operations.under_way() == 1);
  given.operations.look(11.9);
  CHECK_THAT(error_of([&] { given.operations.look(12.0); }).report().what, Catch::Contains("second"));
  given.place = 3;
  given.operations.look(99.0);
  CHECK(given.operations.under_way() == 0);
}

TEST_CASE("what is done is forgotten when more is given", "[parallel][gpu_operations]") {
  GivenOperations given;
  for (int i = 0; i < 1000; ++i) {
    given.give(i, "one of many");
    given.place = 2 * i + 1;
  }
  CHECK(given.operations.under_way() == 1);
}

}  // namespace octet::test
