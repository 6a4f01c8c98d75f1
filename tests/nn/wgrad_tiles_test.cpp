// Weight gradients by tiles (core/nn/wgrad_tiles.h), against float64, columns, and each other's mixtures.
#include "core/nn/wgrad_tiles.h"

#include <algorithm>

#include "core/autograd/tape.h"
#include "core/base/fp8.h"
#include "core/nn/init.h"
#include "core/ops/linear.h"
#include "core/ops/swiglu_ffn.h"
#include "tests/support/devices.h"
#include "tests/support/numeric.h"

namespace octet::test {
namespace {

// Rows of numbers about 1, some of them 2^-12 and 2^-18 of that, some 0, as the gradients of tokens are.
std::vector<bfloat16> uneven(int64_t rows, int64_t cols, uint64_t seed) {
  std::vector<bfloat16> x = uniform<bfloat16>(rows * cols, seed);
  constexpr float kSizes[] = {1.0f, 0x1p-12f, 1.0f, 0x1p-18f, 0.0f, 0x1p-3f, 1.0f};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      bfloat16& value = x[size_t(r * cols + c)];
      value = bfloat16(float(value) * kSizes[size_t(r) % std::size(kSizes)]);
    }
  }
  return x;
}

// What a matrix is after quantising each row's 128 columns, and by how much a tile may change a number of it: by half
// of the distance of subnormal numbers, 2^-10 of the tile's scale, and not where it stays normal.
struct Quantized {
  Doubles values, off;
};
Quantized quantized(const std::vector<bfloat16>& x, int64_t rows, int64_t cols) {
  const Tensor codes = empty({rows, cols}, DType::kFloat8E4M3),
               scale = empty({rows, (cols + 127) / 128}, DType::kFloat32);
  const Tensor back = empty({rows, cols}, DType::kFloat32);
  kernels::quantize_rows({.x = from_vector(x, {rows, cols}), .codes = codes, .scale = scale, .stats = nullptr},
                         default_stream());
  kernels::dequantize_rows({.codes = codes, .scale = scale, .x = back}, default_stream());
  Quantized result{.values = doubles(to_vector<float>(back)), .off = Doubles(size_t(rows * cols))};
  for (int64_t first = 0; first < rows; first += 128) {
    for (int64_t c0 = 0; c0 < cols; c0 += 128) {
      double top = 0;
      const auto each = [&](auto&& body) {
        for (int64_t r = first; r < std::min(first + 128, rows); ++r) {
          for (int64_t c = c0; c < std::min(c0 + 128, cols); ++c) body(r, c);
        }
      };
      each([&](int64_t r, int64_t c) {
        if (result.values[size_t(r * cols + c)] != 0) {
          top = std::max(top, double(scale.data<float>()[r * scale.cols() + c / 128]));
        }
      });
      each([&](int64_t r, int64_t c) {
        const size_t i = size_t(r * cols + c);
        const double value = std::abs(result.values[i]);
        result.off[i] = value < 0x1p-6 * top ? std::min(value, 0x1p-10 * top) : 0;
      });
    }
  }
  return result;
}

std::vector<Parameter*> all_of(std::initializer_list<Parameter*> weights) { return weights; }

Parameter made(const char* name, const Shape& shape, Device device) {
  Parameter weight(name, shape, WeightForm::kFp8Block, /*decays=*/true, device);
  init_normal(weight, 3, 0.1f);
  weight.refresh();
  return weight;
}

}  // namespace

TEST_CASE("the gradient of a linear layer by tiles is that of its rows, but for what tiles lose", "[nn][wgrad]") {
  const Device device = GENERATE(from_range(devices_here()));
  const int64_t T = GENERATE(0, 1, 128, 300), K = GENERATE(16, 144), N = GENERATE(5, 130);
  CAPTURE(device, T, K, N);
  const Numerics numerics{.recipe = Recipe::kFp8Block, .emulation = kernels::Emulation::kFp64};
  const auto x = uneven(T, K, 1), dy = uneven(T, N, 2);
  const auto gradient = [&](bool by_tiles) {
    Parameter weight = made("w", {N, K}, device);
    std::optional<WgradTiles> tiles;
    if (by_tiles) tiles.emplace(all_of({&weight}), 1.0, device);
    const Recording on(true);
    Tensor dx;
    const Tensor source = make_source(from_vector(x, {T, K}, device), [&dx](const Tensor& got) { dx = got; });
    backward(linear(LinearInput(source, numerics), weight, DType::kBFloat16), from_vector(dy, {T, N}, device));
    return std::pair(to_vector<float>(weight.grad()), to_vector<bfloat16>(dx));
  };
  const auto [of_tiles, dx] = gradient(true);
  const auto [of_columns, dx_of_columns] = gradient(false);
  CHECK(doubles(dx) == doubles(dx_of_columns));
  const Quantized a = quantized(dy, T, N), b = quantized(x, T, K);
  int64_t outside = 0, different = 0;
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = 0; k < K; ++k) {
      double sum = 0, bound = 0;
      for (int64_t t = 0; t < T; ++t) {
        const size_t i = size_t(t * N + n), j = size_t(t * K + k);
        sum += a.values[i] * b.values[j];
        bound += std::abs(a.values[i]) * b.off[j] + std::abs(b.values[j]) * a.off[i] + a.off[i] * b.off[j];
      }
      bound += 0x1p-24 * std::abs(sum) + 0x1p-140;  // the result is rounded to float32
      const double got = double(of_tiles[size_t(n * K + k)]);
      outside += !(std::abs(got - sum) <= bound);
      different += got != double(of_columns[size_t(n * K + k)]);
    }
  }
  CHECK(outside == 0);
  if (T == 300) CHECK(different > 0);  // columns lose other numbers
}

TEST_CASE("each weight of experts has the gradient of its own form, whatever that of the other is", "[nn][wgrad]") {
  const Device device = GENERATE(from_range(devices_here()));
  const int64_t F = GENERATE(40, 128);
  const bool has_source = GENERATE(false, true);
  const std::vector<int64_t> offsets =
      GENERATE(std::vector<int64_t>{0, 130, 130, 140}, std::vector<int64_t>{0, 0, 0, 0});
  CAPTURE(device, F, has_source, offsets);
  const int64_t R = offsets.back(), S = has_source ? 150 : R, D = 72, G = 3;
  const Numerics numerics{.recipe = Recipe::kFp8Block, .emulation = kernels::Emulation::kHopper};
  const auto x = uneven(S, D, 1), dout = uneven(S, D, 2);
  auto weights = uniform(R, 3);
  std::vector<int32_t> source;
  for (int64_t r = 0; r < R; ++r) source.push_back(int32_t(r * 37 % S));
  const RowGroups groups = RowGroups::of_offsets(from_vector(offsets, {G + 1}, device),
                                                 has_source ? from_vector(source, {R}, device) : Tensor(), R);
  struct Result {
    std::vector<float> dw13, dw2, dweights;
    std::vector<bfloat16> dx;
    std::vector<std::string> in_columns;
  };
  const auto run = [&](std::vector<std::string> columns, bool has_tiles = true) {
    Parameter w13 = made("w13", {G, 2 * F, D}, device), w2 = made("w2", {G, D, F}, device);
    std::optional<WgradTiles> tiles;
    if (has_tiles) tiles.emplace(all_of({&w13, &w2}), 1.0, device), tiles->set_columns(columns);
    const Recording on(true);
    Tensor dx, dw;
    const Tensor rows = from_vector(x, {S, D}, device);
    const Tensor place = make_source(has_source ? empty({R, D}, DType::kBFloat16, device) : rows,
                                     [&dx](const Tensor& got) { dx = got; });
    const Tensor of_router = make_source(from_vector(weights, {R}, device), [&dw](const Tensor& got) { dw = got; });
    const LinearInput input = has_source ? LinearInput(rows, numerics).at(place) : LinearInput(place, numerics);
    backward(swiglu_ffn(input, groups, of_router, w13, w2, SwigluOptions{}), from_vector(dout, {S, D}, device));
    return Result{to_vector<float>(w13.grad()), to_vector<float>(w2.grad()), to_vector<float>(dw),
                  to_vector<bfloat16>(dx), tiles ? tiles->columns() : std::vector<std::string>()};
  };
  const Result columns = run({}, false), tiles = run({}), first = run({"w13"}), second = run({"w2", "none"});
  const Result both = run({"w13", "w2"});
  CHECK(both.in_columns == std::vector<std::string>{"w13", "w2"});
  CHECK(second.in_columns == std::vector<std::string>{"w2"});
  CHECK((both.dw13 == columns.dw13 && both.dw2 == columns.dw2));
  CHECK((first.dw13 == columns.dw13 && first.dw2 == tiles.dw2));
  CHECK((second.dw13 == tiles.dw13 && second.dw2 == columns.dw2));
  for (const Result* one : {&tiles, &first, &second, &both}) {
    CHECK(doubles(one->dx) == doubles(columns.dx));
    CHECK(one->dweights == columns.dweights);
  }
  // An expert without tokens has no gradient.
  for (size_t i = size_t(2 * F * D); i < size_t(2 * 2 * F * D); ++i) REQUIRE(tiles.dw13[i] == 0.0f);
  if (R == 0) return;
  CHECK(tiles.dw13 != columns.dw13);
  // Half of the distance of subnormal numbers is 2^-18 of the largest number of a tile or a column, at most; a sum has
  // two such operands in both forms, and most of its terms are far smaller than the largest could be.
  for (const auto& [of_tiles, of_columns] :
       {std::pair(&tiles.dw13, &columns.dw13), std::pair(&tiles.dw2, &columns.dw2)}) {
    CHECK_THAT(doubles(*of_tiles), NearAll(doubles(*of_columns), 0x1p-10));
  }
}

TEST_CASE("a weight that loses more than the limit takes columns from then on", "[nn][wgrad]") {
  const Device device = GENERATE(from_range(devices_here()));
  Parameter even = made("even", {8, 16}, device), wide = made("wide", {8, 16}, device);
  WgradTiles tiles(all_of({&even, &wide}), 0.1, device);
  const Numerics numerics{.recipe = Recipe::kFp8Block};
  const int64_t T = 40;
  auto dy = uniform<bfloat16>(T * 8, 2);
  const auto pass = [&](Parameter& weight) {
    const Recording on(true);
    const Tensor source = make_source(from_vector(uniform<bfloat16>(T * 16, 1), {T, 16}, device), [](const Tensor&) {});
    backward(linear(LinearInput(source, numerics), weight, DType::kBFloat16), from_vector(dy, {T, 8}, device));
  };
  const auto counts = [&] { return tiles.read().wait(); };
  tiles.begin_step();
  pass(even), pass(even);
  CHECK(counts() == std::vector<int64_t>{2 * T * 8, 0, 2 * T * 16, 0, 0, 0, 0, 0});
  CHECK(tiles.decide(counts()).empty());
  // A quarter of the rows 2^-20 of the others: nothing is left of them, nor more than before of those that are 0.
  int64_t lost = 0;
  for (int64_t i = 0; i < T / 4 * 8; ++i) lost += float(dy[size_t(i)] = bfloat16(float(dy[size_t(i)]) * 0x1p-20f)) != 0;
  tiles.begin_step();
  pass(wide);
  CHECK(counts() == std::vector<int64_t>{0, 0, 0, 0, T * 8, lost, T * 16, 0});
  kernels::QuantizeStats grad, input;
  tiles.read().add_to(grad, input);
  CHECK((grad.count == T * 8 && grad.flushed == lost && input.count == T * 16 && input.flushed == 0));
  const auto fallbacks = tiles.decide(counts());
  REQUIRE(fallbacks.size() == 1);
  CHECK((fallbacks[0].weight == "wide" && fallbacks[0].is_of_grad));
  CHECK(fallbacks[0].lost == double(lost) / double(T * 8));
  CHECK(tiles.columns() == std::vector<std::string>{"wide"});
  CHECK(tiles.num_columns() == 1);
  tiles.begin_step();
  pass(wide);
  CHECK(counts() == std::vector<int64_t>(8, 0));
  CHECK(tiles.decide(counts()).empty());  // told once
  CHECK(tiles.num_columns() == 1);
  tiles.set_columns({});
  CHECK(tiles.num_columns() == 0);
  CHECK(wide.wgrad_tiles());
}

}  // namespace octet::test
