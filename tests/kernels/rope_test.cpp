#include "kernels/rope.h"

#include "tests/kernels/same_bits.h"

namespace octet::test {
namespace {

using kernels::RopeLayout;
constexpr double kTheta = 100.0;  // small, so that every pair turns visibly

Doubles reference(Doubles x, const std::vector<int32_t>& positions, size_t heads, size_t head_dim, RopeLayout layout) {
  for (size_t t = 0; t < positions.size(); ++t) {
    for (size_t h = 0; h < heads; ++h) {
      double* head = x.data() + (t * heads + h) * head_dim;
      for (size_t i = 0; i < head_dim / 2; ++i) {
        const double angle = positions[t] * std::pow(kTheta, -2.0 * double(i) / double(head_dim));
        double& a = layout == RopeLayout::kHalf ? head[i] : head[2 * i];
        double& b = layout == RopeLayout::kHalf ? head[i + head_dim / 2] : head[2 * i + 1];
        const double kept = a;
        a = kept * std::cos(angle) - b * std::sin(angle);
        b = kept * std::sin(angle) + b * std::cos(angle);
      }
    }
  }
  return x;
}

template <class Scalar>
void check(int64_t T, int64_t H, int64_t D, RopeLayout layout) {
  std::vector<float> table(size_t(50 * D));
  kernels::fill_rope_table(view(table, {50, D}), D, kTheta);
  std::vector<int32_t> positions;
  for (int64_t t = 0; t < T; ++t) positions.push_back(int32_t((t * 17 + 3) % 50));
  // Rows are three columns longer than the heads, as a slice of a fused projection is.
  const int64_t stride = H * D + 3;
  auto x = uniform<Scalar>(T * stride, 1);
  const std::vector<Scalar> before = x;
  const auto heads = [&](const std::vector<Scalar>& rows) {
    Doubles values;
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t c = 0; c < H * D; ++c) values.push_back(double(rows[size_t(t * stride + c)]));
    }
    return values;
  };
  const auto turn = [&](bool inverse) {
    if (x.empty()) x.reserve(1);
    kernels::rope({.x = View(x.data(), {T, H * D}, dtype_of<Scalar>, {}, stride),
                   .positions = view(positions, {T}),
                   .cos_sin = view(table, {50, D}),
                   .head_dim = D,
                   .layout = layout,
                   .inverse = inverse},
                  here());
  };
  const double tolerance = 4 * kEpsilonF32 + (std::is_same_v<Scalar, float> ? 0 : kEpsilonBF16 / 2);
  const auto formula = [&](const Doubles& v) { return reference(v, positions, size_t(H), size_t(D), layout); };
  turn(false);
  CHECK_THAT(heads(x), NearAll(formula(heads(before)), tolerance));
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t c = H * D; c < stride; ++c) {
      CHECK(double(x[size_t(t * stride + c)]) == double(before[size_t(t * stride + c)]));
    }
  }
  // The inverse is the backward pass: the gradient of sum(dy * rope(x)), dy the numbers before.
  x = before;
  turn(true);
  const Doubles zeros(heads(before).size(), 0.0);
  CHECK_THAT(heads(x), NearAll(central_difference(formula, heads(before), zeros), tolerance + 1e-8));
}

}  // namespace

TEST_CASE("rope turns pairs by their angles, and back", "[kernels][rope]") {
  const Backend backend = GENERATE(from_range(backends()));
  const int64_t T = GENERATE(0, 1, 5), H = GENERATE(1, 3), D = GENERATE(2, 12, 64);
  const RopeLayout layout = GENERATE(RopeLayout::kHalf, RopeLayout::kInterleaved);
  const UseBackend use(backend);
  CAPTURE(backend.name, T, H, D, int(layout));
  check<float>(T, H, D, layout);
  check<bfloat16>(T, H, D, layout);
}

TEST_CASE("the rope table is cos and sin of float64 angles", "[kernels][rope]") {
  std::vector<float> table(size_t(5000 * 8));
  kernels::fill_rope_table(view(table, {5000, 8}), 8, 10000.0);
  CHECK((table[0] == 1.0f && table[1] == 0.0f));
  CHECK(table[4999 * 8 + 0] == float(std::cos(4999.0)));
  CHECK(table[4999 * 8 + 1] == float(std::sin(4999.0)));
  CHECK(table[4999 * 8 + 6] == float(std::cos(4999.0 * std::pow(10000.0, -0.75))));
  CHECK_THROWS_AS(kernels::fill_rope_table(view(table, {5000, 8}), 4, 10000.0), Error);
  CHECK_THROWS_AS(kernels::fill_rope_table(view(table, {8000, 5}), 5, 10000.0), Error);
}

TEST_CASE("rope gives the same bits everywhere", "[kernels][rope]") {
  const int64_t T = 70, H = 3, D = 44;
  std::vector<float> table(size_t(T * D));
  kernels::fill_rope_table(view(table, {T, D}), D, 10000.0);
  std::vector<int32_t> positions;
  for (int64_t t = 0; t < T; ++t) positions.push_back(int32_t(t));
  check_same_bits(backends(), [&](std::string& bytes) {
    for (const RopeLayout layout : {RopeLayout::kHalf, RopeLayout::kInterleaved}) {
      auto x = uniform<bfloat16>(T * H * D, 1);
      kernels::rope({.x = view(x, {T, H * D}),
                     .positions = view(positions, {T}),
                     .cos_sin = view(table, {T, D}),
                     .head_dim = D,
                     .layout = layout,
                     .inverse = false},
                    here());
      append_bytes(bytes, x);
    }
  });
}

}  // namespace octet::test
