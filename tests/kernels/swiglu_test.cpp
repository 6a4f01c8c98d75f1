#include "kernels/swiglu.h"

#include <limits>
#include <memory>

#include "tests/kernels/same_bits.h"

namespace octet::test {
namespace {

// Between the bfloat16 numbers: a derivative by differences wants no number on the edge.
constexpr float kLimit = 2.51f;

Doubles reference(const Doubles& h, const Doubles& weights, size_t F, float limit) {
  const double most = limit > 0 ? double(limit) : INFINITY;
  Doubles y;
  for (size_t r = 0; r < weights.size(); ++r) {
    const size_t row = r * 2 * F;
    for (size_t f = 0; f < F; ++f) {
      const double gate = std::min(h[row + f], most);
      y.push_back(weights[r] * gate / (1 + std::exp(-gate)) * std::clamp(h[row + F + f], -most, most));
    }
  }
  return y;
}

template <class Scalar>
void check(int64_t R, int64_t F, bool has_weights, float limit) {
  auto h = uniform<Scalar>(R * 2 * F, 1), dy = uniform<Scalar>(R * F, 2);
  for (Scalar& value : h) value = Scalar(float(value) * 6.0f);
  auto weights = has_weights ? uniform(R, 3) : std::vector<float>(size_t(R), 1.0f);
  std::vector<Scalar> y(dy.size()), dh(h.size());
  std::vector<float> dweights(size_t(R), 7.0f);
  const ConstView w = has_weights ? ConstView(view(weights, {R})) : ConstView();
  const View dw = has_weights ? view(dweights, {R}) : View();
  const View h_view = view(h, {R, 2 * F}), dy_view = view(dy, {R, F});
  kernels::swiglu_forward({.h = h_view, .weights = w, .limit = limit, .y = view(y, {R, F})}, here());
  kernels::swiglu_backward(
      {.dy = dy_view, .h = h_view, .weights = w, .limit = limit, .dh = view(dh, {R, 2 * F}), .dweights = dw}, here());
  // At most nine float32 roundings between input and result; a bfloat16 result is rounded once more, by half an ulp.
  const double tolerance = 9 * kEpsilonF32 + (std::is_same_v<Scalar, float> ? 0 : kEpsilonBF16 / 2);
  const Doubles x = doubles(h), p = doubles(weights);
  const auto of_h = [&](const Doubles& v) { return reference(v, p, size_t(F), limit); };
  CHECK_THAT(doubles(y), NearAll(of_h(x), tolerance));
  CHECK_THAT(doubles(dh), NearAll(central_difference(of_h, doubles(dy), x), tolerance + 1e-8, 1.0));
  if (has_weights) {
    // The terms are below 6, a float32 sum of F of them errs like sqrt(F) ulp of the largest.
    const auto of_weights = [&](const Doubles& v) { return reference(x, v, size_t(F), limit); };
    CHECK_THAT(doubles(dweights), NearAll(central_difference(of_weights, doubles(dy), p),
                                          (8 + 6 * 4 * std::sqrt(double(F))) * kEpsilonF32 + 1e-8, 1.0));
  }
  // In place: dh over h.
  const std::vector<float> wanted = dweights;
  kernels::swiglu_backward({.dy = dy_view, .h = h_view, .weights = w, .limit = limit, .dh = h_view, .dweights = dw},
                           here());
  CHECK(doubles(h) == doubles(dh));
  CHECK(dweights == wanted);
}

}  // namespace

TEST_CASE("swiglu follows its formula, forward and backward", "[kernels][swiglu]") {
  const Backend backend = GENERATE(from_range(backends()));
  const int64_t R = GENERATE(0, 1, 3), F = GENERATE(1, 16, 37, 130, 300);
  const bool has_weights = GENERATE(false, true);
  const float limit = GENERATE(0.0f, kLimit);
  const UseBackend use(backend);
  CAPTURE(backend.name, R, F, has_weights, limit);
  check<float>(R, F, has_weights, limit);
  check<bfloat16>(R, F, has_weights, limit);
}

TEST_CASE("swiglu of very large gates is finite", "[kernels][swiglu]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  std::vector<float> h = {-200.0f, 200.0f, -3e38f, 3e38f, 0.5f, 0.5f, 0.5f, 0.5f}, y(4), dh(8), dy(4, 1.0f);
  kernels::swiglu_forward({.h = view(h, {1, 8}), .y = view(y, {1, 4})}, here());
  CHECK(y == std::vector<float>{0.0f, 100.0f, 0.0f, 1.5e38f});
  kernels::swiglu_backward({.dy = view(dy, {1, 4}), .h = view(h, {1, 8}), .dh = view(dh, {1, 8})}, here());
  CHECK(dh == std::vector<float>{0.0f, 0.5f, 0.0f, 0.5f, 0.0f, 200.0f, 0.0f, 3e38f});
}

TEST_CASE("a limit of swiglu holds gates from above and ups from both sides", "[kernels][swiglu]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> h = {60.0f, inf, 50.0f, nan, 60.0f, -inf, 60.0f, 1.0f}, y(4), dh(8), dy(4, 1.0f);
  kernels::swiglu_forward({.h = view(h, {1, 8}), .limit = 50.0f, .y = view(y, {1, 4})}, here());
  CHECK(std::vector(y.begin(), y.begin() + 3) == std::vector<float>{2500.0f, -2500.0f, 2500.0f});
  CHECK(std::isnan(y[3]));
  kernels::swiglu_backward({.dy = view(dy, {1, 4}), .h = view(h, {1, 8}), .limit = 50.0f, .dh = view(dh, {1, 8})},
                           here());
  CHECK(std::vector(dh.begin(), dh.begin() + 3) == std::vector<float>{0.0f, 0.0f, 50.0f});
  CHECK(std::isnan(dh[3]));
  CHECK(std::vector(dh.begin() + 4, dh.begin() + 7) == std::vector<float>{0.0f, 0.0f, 0.0f});
}

TEST_CASE("what a limit of swiglu changes is counted", "[kernels][swiglu]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  SECTION("one by one") {
    // Gates are held from above only; on the edge nothing changes, and NaN stays.
    std::vector<float> h = {50.5f, 50.0f, -60.0f, nan, inf, -inf, 60.0f, -50.0f, -50.5f, nan, inf, -inf};
    std::vector<kernels::ClampCounts> counts = {{.count = 5, .clamped = 3}};
    kernels::count_clamped({.h = view(h, {1, 12}), .limit = 50.0f, .counts = counts.data()}, here());
    CHECK(counts[0].count == 5 + 12);
    CHECK(counts[0].clamped == 3 + 2 + 4);
  }
  SECTION("of many") {
    const int64_t R = GENERATE(0, 1, 70), F = GENERATE(1, 8, 37, 300), there = (R + 1) / 2;
    CAPTURE(R, F);
    auto h = uniform<bfloat16>(R * 2 * F, 1);
    auto wide = uniform<float>(R * 2 * F, 2);
    std::vector<int64_t> num_rows = {there};
    const auto wanted = [&](const auto& numbers, int64_t rows) {
      int64_t clamped = 0;
      for (int64_t i = 0; i < rows * 2 * F; ++i) {
        const float x = float(numbers[size_t(i)]);
        clamped += (i / F % 2 == 0 ? x : std::abs(x)) > 0.5f;
      }
      return clamped;
    };
    std::vector<kernels::ClampCounts> counts(2);
    kernels::count_clamped({.h = view(h, {R, 2 * F}), .limit = 0.5f, .counts = counts.data()}, here());
    kernels::count_clamped(
        {.h = view(wide, {R, 2 * F}), .limit = 0.5f, .counts = counts.data() + 1, .num_rows = view(num_rows, {1})},
        here());
    CHECK(counts[0].count == R * 2 * F);
    CHECK(counts[0].clamped == wanted(h, R));
    CHECK(counts[1].count == there * 2 * F);
    CHECK(counts[1].clamped == wanted(wide, there));
    CHECK((R < 70 || counts[0].clamped > 0));
  }
}

TEST_CASE("swiglu gives the same bits everywhere", "[kernels][swiglu]") {
  const int64_t R = 67, F = 203;
  auto h = uniform<bfloat16>(R * 2 * F, 1), dy = uniform<bfloat16>(R * F, 2);
  auto wide = uniform<float>(R * 2 * F, 3), weights = uniform(R, 4);
  const View h_view = view(h, {R, 2 * F}), dy_view = view(dy, {R, F}), w = view(weights, {R});
  check_same_bits(backends(), [&](std::string& bytes) {
    std::vector<bfloat16> y(dy.size()), dh(h.size());
    std::vector<float> wide_y(dy.size());
    kernels::swiglu_forward({.h = h_view, .weights = w, .y = view(y, {R, F})}, here());
    kernels::swiglu_forward({.h = view(wide, {R, 2 * F}), .weights = w, .y = view(wide_y, {R, F})}, here());
    kernels::swiglu_backward({.dy = dy_view, .h = h_view, .weights = w, .dh = view(dh, {R, 2 * F})}, here());
    append_bytes(bytes, y);
    append_bytes(bytes, dh);
    append_bytes(bytes, wide_y);
  });
  check_same_bits([&](std::string& bytes) {  // a sum, which a GPU orders in its own way
    std::vector<bfloat16> dh(h.size());
    std::vector<float> dweights(weights.size());
    kernels::swiglu_backward(
        {.dy = dy_view, .h = h_view, .weights = w, .dh = view(dh, {R, 2 * F}), .dweights = view(dweights, {R})},
        here());
    append_bytes(bytes, dweights);
  });
}

namespace {

int64_t blocks(int64_t n) { return (n + 127) / 128; }

// Codes and scales of a matrix quantised some way.
struct Codes {
  std::vector<uint8_t> codes;
  std::vector<float> scale;
  Shape codes_shape, scale_shape;
  Codes(Shape of_codes, Shape of_scale)
      : codes(size_t(of_codes.num_elements()), 0xaa),
        scale(size_t(of_scale.num_elements()), -1.0f),
        codes_shape(of_codes),
        scale_shape(of_scale) {
    codes.reserve(1), scale.reserve(1);
  }
  View codes_view() { return View(codes.data(), codes_shape, DType::kFloat8E4M3); }
  View scale_view() { return View(scale.data(), scale_shape, DType::kFloat32); }
  bool operator==(const Codes& other) const { return codes == other.codes && scale == other.scale; }
};

}  // namespace

TEST_CASE("swiglu in FP8 has the bits of swiglu and quantisation one after the other", "[kernels][swiglu]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t F = GENERATE(1, 37, 100, 128, 256);
  const std::vector<int64_t> sizes =
      GENERATE(std::vector<int64_t>{0}, std::vector<int64_t>{1}, std::vector<int64_t>{0, 130, 0, 128, 3});
  std::vector<int64_t> offsets = {0}, block_offsets = {0};
  for (const int64_t size : sizes) {
    offsets.push_back(offsets.back() + size);
    block_offsets.push_back(block_offsets.back() + blocks(size));
  }
  const bool with_nan = GENERATE(false, true), has_weights = GENERATE(false, true);
  const float limit = has_weights ? kLimit : 0.0f;
  const int64_t R = offsets.back(), G = int64_t(sizes.size()), P = 128 * block_offsets.back();
  CAPTURE(backend.name, F, sizes, with_nan, has_weights);
  auto h = uniform<bfloat16>(R * 2 * F, 1), dy = uniform<bfloat16>(R * F, 2);
  for (bfloat16& value : h) value = bfloat16(float(value) * 6.0f);
  for (int64_t i = 0; i < R * 2 * F; ++i) {  // rows with gates whose exp is not finite
    if (with_nan && i / (2 * F) % 4 == 1) h[size_t(i)] = bfloat16(float(h[size_t(i)]) * 40.0f);
  }
  if (with_nan && R > 0) h[h.size() / 2] = bfloat16(std::numeric_limits<float>::quiet_NaN());
  const View h_view = view(h, {R, 2 * F}), dy_view = view(dy, {R, F});
  const View starts = view(offsets, {G + 1}), block_starts = view(block_offsets, {G + 1});
  auto weights = uniform(R, 3);
  if (with_nan && R > 1) {  // NaN whose rounding as a number would carry into the sign
    dy.back().bits = 0x7fff;
    weights[0] = std::bit_cast<float>(0x7fffffff);
  }
  std::vector<float> dweights(size_t(R), 7.0f), want_dweights(size_t(R), 7.0f);
  const ConstView w = has_weights ? ConstView(view(weights, {R})) : ConstView();
  const View dw = has_weights ? view(dweights, {R}) : View();
  const View want_dw = has_weights ? view(want_dweights, {R}) : View();

  Codes h_codes({R, 2 * F}, {R, blocks(2 * F)}), y_codes({R, F}, {R, blocks(F)});
  const auto stats_memory = std::make_unique<kernels::QuantizeStats>();
  kernels::QuantizeStats& stats = *stats_memory;
  kernels::swiglu_forward_fp8({.h = h_view,
                               .weights = w,
                               .limit = limit,
                               .h_codes = h_codes.codes_view(),
                               .h_scale = h_codes.scale_view(),
                               .y_codes = y_codes.codes_view(),
                               .y_scale = y_codes.scale_view(),
                               .stats = &stats},
                              here());
  const auto rows = [&](const View& x, kernels::QuantizeStats* to) {
    Codes codes({x.rows(), x.cols()}, {x.rows(), blocks(x.cols())});
    kernels::quantize_rows({.x = x, .codes = codes.codes_view(), .scale = codes.scale_view(), .stats = to}, here());
    return codes;
  };
  const auto columns = [&](const View& x, kernels::QuantizeStats* to) {
    Codes codes(kernels::column_codes_shape(P, x.cols(), device_here()), {P / 128, x.cols()});
    kernels::quantize_columns({.x = x,
                               .offsets = starts,
                               .block_offsets = block_starts,
                               .codes = codes.codes_view(),
                               .scale = codes.scale_view(),
                               .stats = to},
                              here());
    return codes;
  };
  std::vector<bfloat16> y(dy.size()), dh(h.size()), kept(h.size());
  y.reserve(1), dh.reserve(1), kept.reserve(1);
  kernels::swiglu_forward({.h = h_view, .weights = w, .limit = limit, .y = view(y, {R, F})}, here());
  const auto wanted_memory = std::make_unique<kernels::QuantizeStats>();
  kernels::QuantizeStats& wanted = *wanted_memory;
  CHECK(h_codes == rows(h_view, &wanted));
  CHECK(y_codes == rows(view(y, {R, F}), &wanted));
  CHECK(stats == wanted);
  Codes y_alone({R, F}, {R, blocks(F)});
  kernels::swiglu_forward_fp8({.h = h_view,
                               .weights = w,
                               .limit = limit,
                               .h_codes = {},
                               .h_scale = {},
                               .y_codes = y_alone.codes_view(),
                               .y_scale = y_alone.scale_view(),
                               .stats = nullptr},
                              here());
  CHECK(y_alone == y_codes);

  Codes y_columns(kernels::column_codes_shape(P, F, device_here()), {P / 128, F});
  Codes dh_rows({R, 2 * F}, {R, blocks(2 * F)});
  Codes dh_columns(kernels::column_codes_shape(P, 2 * F, device_here()), {P / 128, 2 * F});
  const auto y_stats_memory = std::make_unique<kernels::QuantizeStats>();
  kernels::QuantizeStats& y_stats = *y_stats_memory;
  const auto dh_stats_memory = std::make_unique<kernels::QuantizeStats>();
  kernels::QuantizeStats& dh_stats = *dh_stats_memory;
  const auto dh_column_stats_memory = std::make_unique<kernels::QuantizeStats>();
  kernels::QuantizeStats& dh_column_stats = *dh_column_stats_memory;
  kernels::swiglu_backward_fp8({.dy = dy_view,
                                .h_codes = h_codes.codes_view(),
                                .h_scale = h_codes.scale_view(),
                                .weights = w,
                                .limit = limit,
                                .offsets = starts,
                                .block_offsets = block_starts,
                                .y_codes = y_columns.codes_view(),
                                .y_scale = y_columns.scale_view(),
                                .dh_codes = dh_rows.codes_view(),
                                .dh_scale = dh_rows.scale_view(),
                                .dh_column_codes = dh_columns.codes_view(),
                                .dh_column_scale = dh_columns.scale_view(),
                                .dweights = dw,
                                .y_stats = &y_stats,
                                .dh_stats = &dh_stats,
                                .dh_column_stats = &dh_column_stats},
                               here());
  const View kept_view = view(kept, {R, 2 * F}), dh_view = view(dh, {R, 2 * F});
  kernels::dequantize_rows({.codes = h_codes.codes_view(), .scale = h_codes.scale_view(), .x = kept_view}, here());
  kernels::swiglu_forward({.h = kept_view, .weights = w, .limit = limit, .y = view(y, {R, F})}, here());
  kernels::swiglu_backward(
      {.dy = dy_view, .h = kept_view, .weights = w, .limit = limit, .dh = dh_view, .dweights = want_dw}, here());
  const auto want_y_memory = std::make_unique<kernels::QuantizeStats>();
  kernels::QuantizeStats& want_y = *want_y_memory;
  const auto want_dh_memory = std::make_unique<kernels::QuantizeStats>();
  kernels::QuantizeStats& want_dh = *want_dh_memory;
  const auto want_dh_columns_memory = std::make_unique<kernels::QuantizeStats>();
  kernels::QuantizeStats& want_dh_columns = *want_dh_columns_memory;
  const auto want_y_of_rows_memory = std::make_unique<kernels::QuantizeStats>();
  kernels::QuantizeStats& want_y_of_rows = *want_y_of_rows_memory;
  CHECK(y_columns == columns(view(y, {R, F}), &want_y));
  CHECK(dh_rows == rows(dh_view, &want_dh));
  CHECK(dh_columns == columns(dh_view, &want_dh_columns));
  CHECK(y_stats == want_y);
  CHECK(dh_stats == want_dh);
  CHECK(dh_column_stats == want_dh_columns);
  std::string bytes, want_bytes;  // NaN too
  append_bytes(bytes, dweights), append_bytes(want_bytes, want_dweights);
  CHECK(bytes == want_bytes);

  // The other forms: y in rows, and dh in rows alone.
  const Codes want_y_rows = rows(view(y, {R, F}), &want_y_of_rows);
  for (const auto& [y_in_rows, has_columns] :
       {std::pair(true, true), std::pair(true, false), std::pair(false, false)}) {
    CAPTURE(y_in_rows, has_columns);
    Codes y_form = y_in_rows ? Codes({R, F}, {R, blocks(F)}) : Codes(y_columns.codes_shape, y_columns.scale_shape);
    Codes dh_form({R, 2 * F}, {R, blocks(2 * F)}), dh_columns_form(dh_columns.codes_shape, dh_columns.scale_shape);
    y_stats = dh_stats = dh_column_stats = {};
    std::fill(dweights.begin(), dweights.end(), 7.0f);
    const View none;
    kernels::swiglu_backward_fp8({.dy = dy_view,
                                  .h_codes = h_codes.codes_view(),
                                  .h_scale = h_codes.scale_view(),
                                  .weights = w,
                                  .limit = limit,
                                  .offsets = starts,
                                  .block_offsets = block_starts,
                                  .y_codes = y_in_rows ? none : y_form.codes_view(),
                                  .y_scale = y_in_rows ? none : y_form.scale_view(),
                                  .y_row_codes = y_in_rows ? y_form.codes_view() : none,
                                  .y_row_scale = y_in_rows ? y_form.scale_view() : none,
                                  .dh_codes = dh_form.codes_view(),
                                  .dh_scale = dh_form.scale_view(),
                                  .dh_column_codes = has_columns ? dh_columns_form.codes_view() : none,
                                  .dh_column_scale = has_columns ? dh_columns_form.scale_view() : none,
                                  .dweights = dw,
                                  .y_stats = &y_stats,
                                  .dh_stats = &dh_stats,
                                  .dh_column_stats = &dh_column_stats},
                                 here());
    CHECK(y_form == (y_in_rows ? want_y_rows : y_columns));
    CHECK(dh_form == dh_rows);
    if (has_columns) CHECK(dh_columns_form == dh_columns);
    CHECK(y_stats == (y_in_rows ? want_y_of_rows : want_y));
    CHECK(dh_stats == want_dh);
    CHECK(dh_column_stats == (has_columns ? want_dh_columns : kernels::QuantizeStats()));
    bytes.clear();
    append_bytes(bytes, dweights);
    CHECK(bytes == want_bytes);
  }
}

TEST_CASE("swiglu in FP8 gives the same bits on every instruction set, of zeros, small and huge numbers too",
          "[kernels][swiglu]") {
  const int64_t R = 130, F = 256;
  auto h = uniform<bfloat16>(R * 2 * F, 1), dy = uniform<bfloat16>(R * F, 2);
  auto weights = uniform(R, 3);
  for (int64_t r = 0; r < R; ++r) {
    // Whole rows whose products are subnormal numbers, and zeros; some numbers that are codes below the normal ones.
    const float of_h = r % 4 == 1 ? 240.0f : 6.0f, of_dy = r % 4 == 2 ? 0x1p-127f : 1.0f;
    for (int64_t i = 0; i < 2 * F; ++i) h[size_t(r * 2 * F + i)] = bfloat16(float(h[size_t(r * 2 * F + i)]) * of_h);
    for (int64_t i = 0; i < F; ++i) {
      const float small = i % 7 == 3 ? 0x1p-13f : i % 7 == 5 && r % 3 == 0 ? 0.0f : 1.0f;
      dy[size_t(r * F + i)] = bfloat16(float(dy[size_t(r * F + i)]) * of_dy * small);
    }
  }
  std::vector<int64_t> offsets = {0, R}, block_offsets = {0, blocks(R)};
  const int64_t P = 128 * block_offsets.back();
  check_same_bits([&](std::string& bytes) {
    Codes h_codes({R, 2 * F}, {R, blocks(2 * F)}), y({R, F}, {R, blocks(F)}), y_columns({P, F}, {P / 128, F});
    Codes dh({R, 2 * F}, {R, blocks(2 * F)}), dh_columns({P, 2 * F}, {P / 128, 2 * F});
    std::vector<float> dweights(weights.size());
    kernels::swiglu_forward_fp8({.h = view(h, {R, 2 * F}),
                                 .weights = view(weights, {R}),
                                 .h_codes = h_codes.codes_view(),
                                 .h_scale = h_codes.scale_view(),
                                 .y_codes = y.codes_view(),
                                 .y_scale = y.scale_view(),
                                 .stats = nullptr},
                                here());
    kernels::swiglu_backward_fp8({.dy = view(dy, {R, F}),
                                  .h_codes = h_codes.codes_view(),
                                  .h_scale = h_codes.scale_view(),
                                  .weights = view(weights, {R}),
                                  .offsets = view(offsets, {2}),
                                  .block_offsets = view(block_offsets, {2}),
                                  .y_codes = y_columns.codes_view(),
                                  .y_scale = y_columns.scale_view(),
                                  .dh_codes = dh.codes_view(),
                                  .dh_scale = dh.scale_view(),
                                  .dh_column_codes = dh_columns.codes_view(),
                                  .dh_column_scale = dh_columns.scale_view(),
                                  .dweights = view(dweights, {R}),
                                  .y_stats = nullptr,
                                  .dh_stats = nullptr,
                                  .dh_column_stats = nullptr},
                                 here());
    for (const Codes* codes : {&h_codes, &y, &y_columns, &dh, &dh_columns}) {
      append_bytes(bytes, codes->codes), append_bytes(bytes, codes->scale);
    }
    append_bytes(bytes, dweights);
  });
}

TEST_CASE("swiglu leaves room without rows as it is", "[kernels][swiglu]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t R = 5, F = GENERATE(37, 128);
  std::vector<int64_t> count = {GENERATE(0, 1, 4, 5)};
  const int64_t there = count[0];
  CAPTURE(backend.name, F, there);
  // The numbers in the room would be found.
  auto h = uniform<bfloat16>(R * 2 * F, 1), dy = uniform<bfloat16>(R * F, 2);
  std::fill(h.begin() + there * 2 * F, h.end(), bfloat16(std::numeric_limits<float>::quiet_NaN()));
  const View h_view = view(h, {R, 2 * F}), dy_view = view(dy, {R, F}), num_rows = view(count, {1});
  const auto of_rows = [&](const View& all) { return View(all.raw(), {there, all.cols()}, all.dtype()); };
  const View h_there = of_rows(h_view), dy_there = of_rows(dy_view);
  std::vector<bfloat16> y(dy.size(), bfloat16(7.0f)), want_y = y, dh(h.size(), bfloat16(7.0f)), want_dh = dh;
  kernels::swiglu_forward({.h = h_view, .y = view(y, {R, F}), .num_rows = num_rows}, here());
  kernels::swiglu_backward({.dy = dy_view, .h = h_view, .dh = view(dh, {R, 2 * F}), .num_rows = num_rows}, here());
  kernels::swiglu_forward({.h = h_there, .y = of_rows(view(want_y, {R, F}))}, here());
  kernels::swiglu_backward({.dy = dy_there, .h = h_there, .dh = of_rows(view(want_dh, {R, 2 * F}))}, here());
  CHECK(doubles(y) == doubles(want_y));
  CHECK(doubles(dh) == doubles(want_dh));

  const auto in_fp8 = [&](const View& from, const ConstView& rows, kernels::QuantizeStats* stats) {
    std::pair codes{Codes({R, 2 * F}, {R, blocks(2 * F)}), Codes({R, F}, {R, blocks(F)})};
    const auto as_from = [&](const View& all) { return View(all.raw(), {from.rows(), all.cols()}, all.dtype()); };
    kernels::swiglu_forward_fp8({.h = from,
                                 .h_codes = as_from(codes.first.codes_view()),
                                 .h_scale = as_from(codes.first.scale_view()),
                                 .y_codes = as_from(codes.second.codes_view()),
                                 .y_scale = as_from(codes.second.scale_view()),
                                 .stats = stats,
                                 .num_rows = rows},
                                here());
    return codes;
  };
  const auto stats = std::make_unique<kernels::QuantizeStats>(), wanted = std::make_unique<kernels::QuantizeStats>();
  CHECK(in_fp8(h_view, num_rows, stats.get()) == in_fp8(h_there, {}, wanted.get()));
  CHECK(*stats == *wanted);
}

}  // namespace octet::test
