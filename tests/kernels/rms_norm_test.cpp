#include "kernels/rms_norm.h"

#include <limits>
#include <memory>

#include "tests/kernels/same_bits.h"

namespace octet::test {
namespace {

constexpr float kEps = 1e-3f;  // large enough that leaving it out fails the test

Doubles reference(const Doubles& x, const Doubles& weight) {
  const size_t D = weight.size();
  Doubles y(x.size());
  for (size_t row = 0; row < x.size(); row += D) {
    double sum = 0.0;
    for (size_t d = 0; d < D; ++d) sum += x[row + d] * x[row + d];
    for (size_t d = 0; d < D; ++d) y[row + d] = x[row + d] / std::sqrt(sum / double(D) + kEps) * weight[d];
  }
  return y;
}

template <class Scalar>
struct Norm {
  std::vector<Scalar> y, dx;
  std::vector<float> rstd, dweight;
};
// Forward and backward of x [T, D].
template <class Scalar>
Norm<Scalar> norm_of(std::vector<Scalar>& x, std::vector<Scalar>& dy, std::vector<float>& weight, int64_t T,
                     int64_t D) {
  Norm<Scalar> of{.y = std::vector<Scalar>(x.size()),
                  .dx = std::vector<Scalar>(x.size()),
                  .rstd = std::vector<float>(size_t(T)),
                  .dweight = std::vector<float>(size_t(D), 0.0f)};
  kernels::rms_norm_forward({.x = view(x, {T, D}),
                             .weight = view(weight, {D}),
                             .y = view(of.y, {T, D}),
                             .rstd = view(of.rstd, {T}),
                             .eps = kEps},
                            here());
  kernels::rms_norm_backward({.dy = view(dy, {T, D}),
                              .x = view(x, {T, D}),
                              .weight = view(weight, {D}),
                              .rstd = view(of.rstd, {T}),
                              .dx = view(of.dx, {T, D}),
                              .dweight = view(of.dweight, {D})},
                             here());
  return of;
}

template <class Scalar>
void check(int64_t T, int64_t D) {
  auto x = uniform<Scalar>(T * D, 1), dy = uniform<Scalar>(T * D, 3);
  auto weight = uniform(D, 2);
  const auto [y, dx, rstd, dweight] = norm_of(x, dy, weight, T, D);
  const Doubles xs = doubles(x), ws = doubles(weight), dys = doubles(dy);
  // float32 sums of D terms err like sqrt(D) ulp; a bfloat16 result is rounded once more, by half an ulp.
  const double stored = std::is_same_v<Scalar, float> ? 0 : kEpsilonBF16 / 2;
  const double tolerance = 4 * std::sqrt(double(D)) * kEpsilonF32 + stored;
  CHECK_THAT(doubles(y), NearAll(reference(xs, ws), tolerance));
  CHECK_THAT(doubles(dx), NearAll(central_difference([&](const Doubles& v) { return reference(v, ws); }, dys, xs),
                                  tolerance + 1e-8, /*floor=*/1.0));
  CHECK_THAT(doubles(dweight), NearAll(central_difference([&](const Doubles& v) { return reference(xs, v); }, dys, ws),
                                       4 * std::sqrt(double(T + D)) * kEpsilonF32 + 1e-8));
}

}  // namespace

TEST_CASE("rms_norm follows its formula, forward and backward", "[kernels][rms_norm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const int64_t T = GENERATE(0, 1, 7), D = GENERATE(1, 31, 64);
  const UseBackend use(backend);
  CAPTURE(backend.name, T, D);
  check<float>(T, D);
  check<bfloat16>(T, D);
}

TEST_CASE("rms_norm gives the same bits on every instruction set", "[kernels][rms_norm]") {
  const int64_t T = 130, D = GENERATE(77, 205);
  auto x = uniform<bfloat16>(T * D, 1), dy = uniform<bfloat16>(T * D, 3);
  auto weight = uniform(D, 2);
  for (size_t d = 0; d < weight.size(); d += 3) weight[d] *= 0x1p-127f;  // subnormal numbers
  check_same_bits([&](std::string& bytes) {
    const auto [y, dx, rstd, dweight] = norm_of(x, dy, weight, T, D);
    append_bytes(bytes, y), append_bytes(bytes, rstd), append_bytes(bytes, dx), append_bytes(bytes, dweight);
  });
}

TEST_CASE("rms_norm in FP8 has the bits of rms_norm and quantisation one after the other", "[kernels][rms_norm]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t T = GENERATE(0, 1, 7), D = GENERATE(1, 31, 128, 2200);
  const bool with_nan = GENERATE(false, true);
  CAPTURE(backend.name, T, D, with_nan);
  auto x = uniform<bfloat16>(T * D, 1);
  if (with_nan && T > 0) x[x.size() / 2] = bfloat16(std::numeric_limits<float>::quiet_NaN());
  auto weight = uniform(D, 2);
  const int64_t blocks = (D + 127) / 128;
  std::vector<bfloat16> y(x.size()), want_y(x.size());
  std::vector<uint8_t> codes(x.size(), 0xaa), codes_alone = codes, want_codes = codes;
  std::vector<float> scale(size_t(T * blocks), -1.0f), scale_alone = scale, want_scale = scale;
  std::vector<float> rstd(static_cast<size_t>(T)), want_rstd(static_cast<size_t>(T));
  const auto of_codes = [&](std::vector<uint8_t>& all) { return View(all.data(), {T, D}, DType::kFloat8E4M3); };
  const auto stats = std::make_unique<kernels::QuantizeStats>(), want = std::make_unique<kernels::QuantizeStats>();
  const View x_view = view(x, {T, D}), w = view(weight, {D});
  kernels::rms_norm_forward_fp8({.x = x_view,
                                 .weight = w,
                                 .y = view(y, {T, D}),
                                 .codes = of_codes(codes),
                                 .scale = view(scale, {T, blocks}),
                                 .rstd = view(rstd, {T}),
                                 .stats = stats.get(),
                                 .eps = kEps},
                                here());
  kernels::rms_norm_forward_fp8({.x = x_view,
                                 .weight = w,
                                 .y = {},
                                 .codes = of_codes(codes_alone),
                                 .scale = view(scale_alone, {T, blocks}),
                                 .rstd = view(rstd, {T}),
                                 .stats = nullptr,
                                 .eps = kEps},
                                here());
  kernels::rms_norm_forward(
      {.x = x_view, .weight = w, .y = view(want_y, {T, D}), .rstd = view(want_rstd, {T}), .eps = kEps}, here());
  kernels::quantize_rows({.x = view(want_y, {T, D}),
                          .codes = of_codes(want_codes),
                          .scale = view(want_scale, {T, blocks}),
                          .stats = want.get()},
                         here());
  std::string bytes, want_bytes;  // NaN too
  append_bytes(bytes, y), append_bytes(bytes, rstd), append_bytes(bytes, scale);
  append_bytes(want_bytes, want_y), append_bytes(want_bytes, want_rstd), append_bytes(want_bytes, want_scale);
  CHECK(bytes == want_bytes);
  CHECK(codes == want_codes);
  CHECK(codes_alone == want_codes);
  CHECK(scale_alone == want_scale);
  CHECK(*stats == *want);
}

TEST_CASE("rms_norm's dweight has the same bits everywhere", "[kernels][rms_norm]") {
  const int64_t T = 150, D = GENERATE(77, 600);
  auto x = uniform<bfloat16>(T * D, 1), dy = uniform<bfloat16>(T * D, 2);
  auto weight = uniform(D, 3), rstd = uniform(T, 4);
  check_same_bits(backends(), [&](std::string& bytes) {
    std::vector<bfloat16> dx(x.size());
    std::vector<float> dweight(static_cast<size_t>(D), 0.5f);
    kernels::rms_norm_backward({.dy = view(dy, {T, D}),
                                .x = view(x, {T, D}),
                                .weight = view(weight, {D}),
                                .rstd = view(rstd, {T}),
                                .dx = view(dx, {T, D}),
                                .dweight = view(dweight, {D})},
                               here());
    append_bytes(bytes, dweight);
  });
}

}  // namespace octet::test
