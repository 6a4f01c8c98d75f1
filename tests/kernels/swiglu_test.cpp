#include "kernels/swiglu.h"

#include "tests/kernels/same_bits.h"

namespace octet::test {
namespace {

Doubles reference(const Doubles& h, size_t F) {
  Doubles y;
  for (size_t row = 0; row < h.size(); row += 2 * F) {
    for (size_t f = 0; f < F; ++f) y.push_back(h[row + f] / (1 + std::exp(-h[row + f])) * h[row + F + f]);
  }
  return y;
}

template <class Scalar>
void check(int64_t R, int64_t F) {
  auto h = uniform<Scalar>(R * 2 * F, 1), dy = uniform<Scalar>(R * F, 2);
  for (Scalar& value : h) value = Scalar(float(value) * 6.0f);
  std::vector<Scalar> y(dy.size()), dh(h.size());
  kernels::swiglu_forward({.h = view(h, {R, 2 * F}), .y = view(y, {R, F})}, default_stream());
  kernels::swiglu_backward({.dy = view(dy, {R, F}), .h = view(h, {R, 2 * F}), .dh = view(dh, {R, 2 * F})},
                           default_stream());
  // At most eight float32 roundings between input and result; a bfloat16 result is rounded once more, by half an ulp.
  const double tolerance = 8 * kEpsilonF32 + (std::is_same_v<Scalar, float> ? 0 : kEpsilonBF16 / 2);
  const auto formula = [&](const Doubles& v) { return reference(v, size_t(F)); };
  CHECK_THAT(doubles(y), NearAll(formula(doubles(h)), tolerance));
  CHECK_THAT(doubles(dh), NearAll(central_difference(formula, doubles(dy), doubles(h)), tolerance + 1e-8, 1.0));
  // In place: dh over h.
  kernels::swiglu_backward({.dy = view(dy, {R, F}), .h = view(h, {R, 2 * F}), .dh = view(h, {R, 2 * F})},
                           default_stream());
  CHECK(doubles(h) == doubles(dh));
}

}  // namespace

TEST_CASE("swiglu follows its formula, forward and backward", "[kernels][swiglu]") {
  const Isa isa = GENERATE(from_range(supported_isas()));
  const int64_t R = GENERATE(0, 1, 3), F = GENERATE(1, 16, 37);
  const UseIsa use(isa);
  CAPTURE(name_of(isa), R, F);
  check<float>(R, F);
  check<bfloat16>(R, F);
}

TEST_CASE("swiglu of very large gates is finite", "[kernels][swiglu]") {
  const Isa isa = GENERATE(from_range(supported_isas()));
  const UseIsa use(isa);
  std::vector<float> h = {-200.0f, 200.0f, -3e38f, 3e38f, 0.5f, 0.5f, 0.5f, 0.5f}, y(4), dh(8), dy(4, 1.0f);
  kernels::swiglu_forward({.h = view(h, {1, 8}), .y = view(y, {1, 4})}, default_stream());
  CHECK(y == std::vector<float>{0.0f, 100.0f, 0.0f, 1.5e38f});
  kernels::swiglu_backward({.dy = view(dy, {1, 4}), .h = view(h, {1, 8}), .dh = view(dh, {1, 8})}, default_stream());
  CHECK(dh == std::vector<float>{0.0f, 0.5f, 0.0f, 0.5f, 0.0f, 200.0f, 0.0f, 3e38f});
}

TEST_CASE("swiglu gives the same bits everywhere", "[kernels][swiglu]") {
  const int64_t R = 67, F = 203;
  auto h = uniform<bfloat16>(R * 2 * F, 1), dy = uniform<bfloat16>(R * F, 2);
  auto wide = uniform<float>(R * 2 * F, 3);
  check_same_bits([&](Stream& stream, std::string& bytes) {
    std::vector<bfloat16> y(dy.size()), dh(h.size());
    std::vector<float> wide_y(dy.size());
    kernels::swiglu_forward({.h = view(h, {R, 2 * F}), .y = view(y, {R, F})}, stream);
    kernels::swiglu_forward({.h = view(wide, {R, 2 * F}), .y = view(wide_y, {R, F})}, stream);
    kernels::swiglu_backward({.dy = view(dy, {R, F}), .h = view(h, {R, 2 * F}), .dh = view(dh, {R, 2 * F})}, stream);
    append_bytes(bytes, y);
    append_bytes(bytes, dh);
    append_bytes(bytes, wide_y);
  });
}

}  // namespace octet::test
