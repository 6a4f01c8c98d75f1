#include "kernels/update_factors.h"

#include <bit>
#include <limits>

#include "tests/kernels/same_bits.h"

namespace octet::test {
namespace {

std::vector<int64_t> bits_of(const Doubles& numbers) {
  std::vector<int64_t> bits;
  for (const double number : numbers) bits.push_back(std::bit_cast<int64_t>(number));
  return bits;
}

// A clip of 0 is none.
kernels::UpdateFactors judged(std::vector<float> losses, const Doubles& squares, double grad_clip) {
  std::vector<int64_t> bits = bits_of(squares);
  const int64_t n = int64_t(losses.size()), S = int64_t(bits.size());
  losses.reserve(1), bits.reserve(1);
  std::vector<kernels::UpdateFactors> factors = {kernels::UpdateFactors::of_step(3, 0.5f, 0.9f, 0.95f)};
  factors[0].is_left_out = 7;
  kernels::judge_update(
      {.losses = view(losses, {n}), .squares = view(bits, {S}), .grad_clip = grad_clip, .factors = factors.data()},
      here());
  CHECK(factors[0].lr == 0.5f);
  CHECK(factors[0].correct_m == float(1 / (1 - double(0.9f) * double(0.9f) * double(0.9f))));
  return factors[0];
}

}  // namespace

TEST_CASE("gradients are scaled to the largest norm", "[kernels][update_factors]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t S = GENERATE(0, 1, 2, 255, 256, 257, 1000), n = GENERATE(0, 1, 300);
  CAPTURE(backend.name, S, n);
  const Doubles squares = doubles(uniform(S, 1));
  double sum = 0;
  Doubles positive;
  for (const double x : squares) positive.push_back(x * x), sum += x * x;
  const std::vector<float> losses(size_t(n), 3.0f);
  const double norm = std::sqrt(sum);
  for (const double clip : {0.0, norm / 2, norm, 2 * norm}) {
    const kernels::UpdateFactors got = judged(losses, positive, clip);
    // The sum has one order: the bits of the host's.
    CHECK(got.grad_scale == (clip > 0 && norm > clip ? float(clip / norm) : 1.0f));
    CHECK(got.is_left_out == 0);
  }
}

TEST_CASE("a loss or a norm that is not finite leaves the step out, wherever it lies", "[kernels][update_factors]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const float bad = GENERATE(INFINITY, -INFINITY, NAN);
  const size_t at = GENERATE(size_t(0), size_t(255), size_t(299));
  CAPTURE(backend.name, bad, at);
  std::vector<float> losses(300, 1.0f);
  Doubles squares(300, 1.0);
  CHECK(judged(losses, squares, 1).is_left_out == 0);
  squares[at] = double(bad);
  CHECK(judged(losses, squares, 1).is_left_out == 1);
  squares[at] = std::numeric_limits<double>::max();  // the sum of two overflows
  CHECK(judged(losses, squares, 1).is_left_out == 0);
  squares[150] = squares[at];
  CHECK(judged(losses, squares, 1).is_left_out == 1);
  squares.assign(300, 1.0);
  losses[at] = bad;
  CHECK(judged(losses, squares, 1).is_left_out == 1);
}

}  // namespace octet::test
