#include "kernels/kernel_profile.h"

#include "core/base/stream.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "tests/support/numeric.h"

namespace octet::test {
namespace {

// Goes on by one second at each look.
class CountingClock : public Clock {
 public:
  int64_t monotonic_ns() override { return ++looks_ * 1'000'000'000; }
  int64_t unix_ns() override { return 0; }

 private:
  int64_t looks_ = 0;
};

}  // namespace

TEST_CASE("a profile sums time, bytes and operations by kernel while it lives", "[kernels][profile]") {
  std::vector<float> a(6 * 5), b(7 * 5), c(6 * 7), x(10), y(10);
  const kernels::GroupedGemm gemm{.a = view(a, {6, 5}), .b = view(b, {7, 5}), .c = view(c, {6, 7})};
  const kernels::Cast cast{.x = view(x, {10}), .y = view(y, {10})};
  CountingClock clock;
  {
    kernels::KernelProfile profile(clock);
    kernels::cast(cast, default_stream());
    kernels::grouped_gemm(gemm, default_stream());
    kernels::grouped_gemm(gemm, default_stream());
    const auto rows = profile.rows();
    REQUIRE(rows.size() == 2);
    CHECK(std::string(rows[0].cost.name) == "grouped_gemm");
    CHECK(rows[0].calls == 2);
    CHECK(rows[0].seconds == 2.0);
    CHECK(rows[0].cost.float_flops == 2 * 2.0 * 6 * 7 * 5);
    CHECK(rows[0].cost.pair_flops == 0.0);
    CHECK(rows[0].cost.bytes == 2 * 4.0 * (6 * 5 + 7 * 5 + 6 * 7));
    CHECK(std::string(rows[1].cost.name) == "cast");
    CHECK(rows[1].cost.bytes == 80.0);
    profile.clear();
    CHECK(profile.rows().empty());
  }
  CHECK(kernels::KernelProfile::current() == nullptr);
  const int64_t before = clock.monotonic_ns();
  kernels::cast(cast, default_stream());
  CHECK(clock.monotonic_ns() == before + 1'000'000'000);  // nobody looked at it in between
}

}  // namespace octet::test
