#include "kernels/elementwise.h"

#include <limits>

#include "tests/kernels/same_bits.h"

namespace octet::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

template <class A, class B, class Y>
void check_add(int64_t n) {
  auto a = uniform<A>(n, 1);
  auto b = uniform<B>(n, 2);
  std::vector<Y> y(a.size());
  kernels::add_into({.a = view(a, {n}), .b = view(b, {n}), .y = view(y, {n})}, here());
  std::vector<Y> wanted;
  for (size_t i = 0; i < a.size(); ++i) wanted.push_back(Y(float(a[i]) + float(b[i])));
  CHECK(doubles(y) == doubles(wanted));
}

template <class Scalar>
void check_in_place(int64_t n) {
  auto x = uniform<Scalar>(n, 1), y = uniform<Scalar>(n, 2);
  std::vector<Scalar> sum, scaled;
  for (size_t i = 0; i < x.size(); ++i) {
    sum.push_back(Scalar(float(x[i]) + float(y[i])));
    scaled.push_back(Scalar(float(sum[i]) * 0.3f));
  }
  kernels::add_into({.a = view(x, {n}), .b = view(y, {n}), .y = view(x, {n})}, here());
  CHECK(doubles(x) == doubles(sum));
  kernels::scale({.x = view(x, {n}), .factor = 0.3f}, here());
  CHECK(doubles(x) == doubles(scaled));
}

template <class Scalar>
void check_sums(int64_t n) {
  auto x = uniform<Scalar>(n, 5);
  double wanted = 0;
  for (const Scalar value : x) wanted += double(value) * double(value);
  std::vector<double> sum(1);
  kernels::square_sums({.x = view(x, {n}), .sums = sum.data()}, here());
  CHECK(std::abs(sum[0] - wanted) <= 0x1p-52 * double(n) * wanted);  // one rounding for each of n sums, in either order
  std::vector<int64_t> count = {3};
  kernels::count_non_finite({.x = view(x, {n}), .count = count.data()}, here());
  CHECK(count[0] == 3);
  const float bad[] = {kInfinity, -kInfinity, kNan, -kNan};
  int64_t planted = 0;
  for (size_t i = 0; i < x.size(); i += 1 + i / 3) x[i] = Scalar(bad[planted++ % 4]);
  kernels::count_non_finite({.x = view(x, {n}), .count = count.data()}, here());
  CHECK(count[0] == 3 + planted);
}

}  // namespace

TEST_CASE("elementwise kernels follow their formulas", "[kernels][elementwise]") {
  const Backend backend = GENERATE(from_range(backends()));
  const int64_t n = GENERATE(0, 1, 17, 16384 * 2 + 5);
  const UseBackend use(backend);
  CAPTURE(backend.name, n);
  check_add<float, float, float>(n);
  check_add<float, bfloat16, float>(n);
  check_add<bfloat16, float, bfloat16>(n);
  check_add<bfloat16, bfloat16, bfloat16>(n);
  check_add<float, float, bfloat16>(n);
  check_in_place<float>(n);
  check_in_place<bfloat16>(n);
}

TEST_CASE("a cast rounds as the bfloat16 constructor does", "[kernels][elementwise]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  std::vector<float> x = {0.0f,         -0.0f, kInfinity,       -kInfinity,    kNan,          -kNan,         0x1p-149f,
                          -0x1.8p-133f, 3e38f, 0x1.fffffep127f, 0x1.010000p0f, 0x1.030000p0f, 0x1.010002p0f, 1.0f};
  for (uint64_t u = 0; u < (uint64_t(1) << 32); u += 65521) x.push_back(std::bit_cast<float>(uint32_t(u)));
  const int64_t n = int64_t(x.size());
  std::vector<bfloat16> y(x.size()), z(x.size());
  kernels::cast({.x = view(x, {n}), .y = view(y, {n})}, here());
  size_t different = 0;
  for (size_t i = 0; i < x.size(); ++i) different += y[i].bits != bfloat16(x[i]).bits;
  CHECK(different == 0);
  std::vector<float> back(x.size()), same(x.size());
  kernels::cast({.x = view(y, {n}), .y = view(back, {n})}, here());
  kernels::cast({.x = view(y, {n}), .y = view(z, {n})}, here());
  kernels::cast({.x = view(x, {n}), .y = view(same, {n})}, here());
  for (size_t i = 0; i < x.size(); ++i) {
    different += std::bit_cast<uint32_t>(back[i]) != uint32_t(y[i].bits) << 16;
    different += z[i].bits != y[i].bits;
    different += std::bit_cast<uint32_t>(same[i]) != std::bit_cast<uint32_t>(x[i]);
  }
  CHECK(different == 0);
}

TEST_CASE("sums of squares and counts of non-finite numbers", "[kernels][elementwise]") {
  const Backend backend = GENERATE(from_range(backends()));
  const int64_t n = GENERATE(0, 1, 15, 65536, 65536 * 2 + 33);
  const UseBackend use(backend);
  CAPTURE(backend.name, n);
  check_sums<float>(n);
  check_sums<bfloat16>(n);
}

TEST_CASE("square sums are those of 128 rows, in each matrix anew", "[kernels][elementwise]") {
  const Backend backend = GENERATE(from_range(backends()));
  const int64_t G = GENERATE(0, 1, 3), N = GENERATE(1, 128, 129, 300), K = GENERATE(1, 40);
  const UseBackend use(backend);
  CAPTURE(backend.name, G, N, K);
  auto x = uniform(G * N * K, 6);
  const int64_t of_matrix = (N + 127) / 128;
  std::vector<double> sums(size_t(G * of_matrix), -1.0), wanted(sums.size(), 0.0);
  kernels::square_sums({.x = view(x, {G, N, K}), .sums = sums.data()}, here());
  for (int64_t i = 0; i < G * N * K; ++i) {
    wanted[size_t(i / (N * K) * of_matrix + i / K % N / 128)] += double(x[size_t(i)]) * double(x[size_t(i)]);
  }
  for (size_t s = 0; s < sums.size(); ++s)
    CHECK(std::abs(sums[s] - wanted[s]) <= 0x1p-52 * 128 * double(K) * wanted[s]);
}

TEST_CASE("elementwise kernels give the same bits everywhere", "[kernels][elementwise]") {
  const int64_t n = 65536 * 3 + 77;
  auto x = uniform(n, 1);
  auto narrow = uniform<bfloat16>(n, 2);
  check_same_bits([&](std::string& bytes) {
    std::vector<double> sum(2);
    kernels::square_sums({.x = view(x, {n}), .sums = &sum[0]}, here());
    kernels::square_sums({.x = view(narrow, {n}), .sums = &sum[1]}, here());
    append_bytes(bytes, sum);
  });
  check_same_bits(backends(), [&](std::string& bytes) {
    std::vector<bfloat16> y(x.size());
    kernels::add_into({.a = view(x, {n}), .b = view(narrow, {n}), .y = view(y, {n})}, here());
    kernels::scale({.x = view(y, {n}), .factor = 0.7f}, here());
    append_bytes(bytes, y);
  });
}

}  // namespace octet::test
