#include "kernels/peak.h"

#include "tests/kernels/backend.h"
#include "tests/support/numeric.h"

namespace octet::test {
namespace {

// On which all that is done takes the same time.
class SteppingClock final : public Clock {
 public:
  explicit SteppingClock(int64_t step_ns) : step_ns_(step_ns) {}
  int64_t monotonic_ns() override { return step_ns_ * calls_++; }
  int64_t unix_ns() override { return 0; }
  int64_t calls() const { return calls_; }

 private:
  int64_t step_ns_, calls_ = 0;
};

}  // namespace

TEST_CASE("peak_loop counts the operations of its rounds", "[kernels][peak]") {
  const UseBackend use(GENERATE(from_range(cpu_backends())));
  const auto arithmetic = GENERATE(kernels::Arithmetic::kFloat32, kernels::Arithmetic::kBFloat16Pairs);
  const auto counted = [&](int64_t pieces, int64_t rounds) {
    std::vector<float> sink(size_t(pieces), -1.0f);
    sink.reserve(1);
    double flops = -1;
    kernels::peak_loop(
        {.arithmetic = arithmetic, .pieces = pieces, .rounds = rounds, .sink = view(sink, {pieces}), .flops = &flops},
        here());
    for (const float sum : sink) CHECK((std::isfinite(sum) && sum >= 0));
    return flops;
  };
  const double one = counted(1, 1);
  CHECK(one >= 2 * 16);
  CHECK(counted(3, 5) == 15 * one);
  CHECK(counted(3, 0) == 0);
  CHECK(counted(0, 5) == 0);
}

TEST_CASE("a slow machine is not measured for long", "[kernels][peak]") {
  SteppingClock slow(int64_t(1e9));
  CHECK(kernels::measure_peak_flops(kernels::Arithmetic::kFloat32, here(), slow) > 0);
  CHECK(slow.calls() == 2);
  SteppingClock usual(int64_t(3e6));
  CHECK(kernels::measure_peak_flops(kernels::Arithmetic::kFloat32, here(), usual) > 0);
  CHECK(usual.calls() == 2 * 12);
}

}  // namespace octet::test
