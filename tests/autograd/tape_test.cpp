#include "core/autograd/tape.h"

#include "core/ops/add.h"
#include "core/tensor/transfer.h"
#include "tests/support/devices.h"
#include "tests/support/numeric.h"

namespace octet::test {
namespace {

Tensor filled(float value, Device device = {}) { return from_vector(std::vector<float>(6, value), {2, 3}, device); }
// y = factor * x, recorded.
Tensor times(const Tensor& x, float factor) {
  std::vector<float> values = to_vector<float>(x);
  for (float& value : values) value *= factor;
  const Tensor y = from_vector(values, x.shape(), x.device());
  return record("times", y, {x}, [factor](const Tensor& dy) -> Gradients { return {times(dy, factor)}; });
}

}  // namespace

TEST_CASE("a tensor that is used twice gets the sum of its gradients", "[autograd]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  const Recording on(true);
  Tensor dx;
  const Tensor x = make_source(filled(1, device), [&](const Tensor& gradient) { dx = gradient; });
  const Tensor left = times(x, 2), right = times(x, 3);
  const Tensor y = add(add(left, right), x);
  CHECK(to_vector<float>(y) == std::vector<float>(6, 6.0f));
  backward(y, filled(1, device));
  CHECK(to_vector<float>(dx) == std::vector<float>(6, 6.0f));
  CHECK_THROWS_AS(backward(y, filled(1, device)), Error);
}

TEST_CASE("nothing is recorded where recording is off or no input is on the tape", "[autograd]") {
  CHECK_FALSE(is_recording());
  CHECK_FALSE(times(make_source(filled(1), [](const Tensor&) {}), 2).requires_grad());
  const Recording on(true);
  CHECK_FALSE(times(filled(1), 2).requires_grad());
  const Tensor x = make_source(filled(1), [](const Tensor&) {});
  const Recording off(false);
  CHECK_FALSE(times(x, 2).requires_grad());
}

TEST_CASE("a chain of a million ops runs back and is freed", "[autograd]") {
  const Recording on(true);
  const auto chain = [](const Tensor& source) {
    Tensor y = source;
    for (int i = 0; i < 1'000'000; ++i) {
      y = record("same", y.detach(), {y}, [](const Tensor& dy) -> Gradients { return {dy}; });
    }
    return y;
  };
  Tensor dx;
  const Tensor x = make_source(filled(1), [&](const Tensor& gradient) { dx = gradient; });
  backward(chain(x), filled(5));
  CHECK(to_vector<float>(dx) == std::vector<float>(6, 5.0f));
  chain(x);  // dropped without ever running back
}

TEST_CASE("recompute runs its body again, nested too, and gives the same gradient", "[autograd]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  const Recording on(true);
  int runs = 0;
  const auto body = [&runs](const Tensor& x) {
    ++runs;
    return add(times(x, 2), x);
  };
  Tensor dx;
  const Tensor x = make_source(filled(1, device), [&](const Tensor& gradient) { dx = gradient; });
  const Tensor y = recompute(x, [&](const Tensor& in) { return recompute(times(in, 10), body); });
  CHECK(runs == 1);
  CHECK(to_vector<float>(y) == std::vector<float>(6, 30.0f));
  backward(y, filled(1, device));
  CHECK(runs == 3);
  CHECK(to_vector<float>(dx) == std::vector<float>(6, 30.0f));
  CHECK_FALSE(is_recomputing());
}

TEST_CASE("activation memory is given back when the tape has run", "[autograd]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  const auto in_use = [device] { return memory_use(device).current_bytes[size_t(MemoryCategory::kActivations)]; };
  const int64_t before = in_use();
  {
    const Recording on(true);
    const Tensor x = make_source(filled(1, device), [](const Tensor&) {});
    const Tensor y = times(times(x, 2), 3);
    CHECK(in_use() > before);
    backward(y, filled(1, device));
  }
  CHECK(in_use() == before);
}

}  // namespace octet::test
