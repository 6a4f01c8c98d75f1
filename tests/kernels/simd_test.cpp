#include <bit>
#include <limits>

#include "tests/kernels/same_bits.h"
#include "tests/kernels/simd_probe.h"

namespace octet::test {
namespace {

using kernels::SimdProbe;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> probe(SimdProbe::Function function, std::vector<float> x, Stream& stream = default_stream()) {
  const size_t n = x.size();
  while (x.size() % 256 != 0) x.push_back(1.0f);
  std::vector<float> y(x.size());
  kernels::cpu::simd_probe({.function = function, .x = x.data(), .y = y.data(), .n = int64_t(x.size())}, stream);
  y.resize(n);
  return y;
}

// Every 4099th float, which visits each exponent about 2047 times for each sign.
std::vector<float> floats() {
  std::vector<float> x;
  for (uint64_t u = 0; u < (uint64_t(1) << 32); u += 4099) {
    const float value = std::bit_cast<float>(uint32_t(u));
    if (!std::isnan(value)) x.push_back(value);
  }
  return x;
}

// |got - wanted| in units of the distance between float32 numbers at wanted.
double ulps(float got, double wanted) {
  if (std::isinf(got) || std::isinf(wanted)) return double(got) == wanted ? 0 : 1e9;
  const double unit = std::ldexp(1.0, std::max(std::ilogb(wanted), -126) - 23);
  return std::abs(double(got) - wanted) / unit;
}

}  // namespace

TEST_CASE("exp, log and sigmoid are close to those of float64 on all of float32", "[kernels][simd]") {
  const Isa isa = GENERATE(from_range(supported_isas()));
  const UseIsa use(isa);
  CAPTURE(name_of(isa));
  std::vector<float> x = floats();
  for (float near : {-104.0f, -88.0f, -87.34f, -1.0f, 0.5f, 88.0f, 88.7228f}) {
    for (int i = -2000; i < 2000; ++i) x.push_back(near + float(i) * 0x1p-17f);
  }
  const std::vector<float> e = probe(SimdProbe::kExp, x), l = probe(SimdProbe::kLog, x),
                           s = probe(SimdProbe::kSigmoid, x);
  double worst_exp = 0, worst_log = 0, worst_sigmoid = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double v = double(x[i]);
    const double want_exp = std::exp(v) < 0x1p-126 ? 0.0 : std::exp(v) > 0x1.fffffep127 ? INFINITY : std::exp(v);
    // Within half a unit of the limits of normal numbers either answer is right.
    const bool at_limit = std::abs(v - -87.3365448) < 1e-5 || std::abs(v - 88.7228391) < 1e-5;
    if (!at_limit) worst_exp = std::max(worst_exp, ulps(e[i], want_exp));
    if (v > 0) {
      worst_log = std::max(worst_log, ulps(l[i], std::log(v)));
    } else if (v == 0) {
      CHECK(l[i] == -kInfinity);
    } else if (!std::isnan(l[i])) {
      FAIL("log of " << v << " is " << l[i]);
    }
    const double want_sigmoid = 1 / (1 + std::exp(-v));
    if (std::abs(v) < 87) worst_sigmoid = std::max(worst_sigmoid, ulps(s[i], want_sigmoid));
    if (v >= 87 && s[i] != 1.0f) FAIL("sigmoid of " << v << " is " << s[i]);
    if (v <= -89 && s[i] != 0.0f) FAIL("sigmoid of " << v << " is " << s[i]);
  }
  CHECK(worst_exp < 1.0);
  CHECK(worst_log < 1.5);
  CHECK(worst_sigmoid < 2.5);  // of exp 1, of the sum and the quotient half a unit each, which the quotient may double
}

TEST_CASE("exp and log at their edges", "[kernels][simd]") {
  const Isa isa = GENERATE(from_range(supported_isas()));
  const UseIsa use(isa);
  CAPTURE(name_of(isa));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> e =
      probe(SimdProbe::kExp, {0.0f, -0.0f, kInfinity, -kInfinity, nan, 1e30f, -1e30f, 88.8f, -87.4f});
  CHECK(e[0] == 1.0f);
  CHECK(e[1] == 1.0f);
  CHECK(e[2] == kInfinity);
  CHECK((e[3] == 0.0f && !std::signbit(e[3])));
  CHECK(std::isnan(e[4]));
  CHECK(e[5] == kInfinity);
  CHECK(e[6] == 0.0f);
  CHECK(e[7] == kInfinity);
  CHECK(e[8] == 0.0f);
  const std::vector<float> l =
      probe(SimdProbe::kLog, {1.0f, 0.0f, -0.0f, kInfinity, -kInfinity, nan, -1.0f, 0x1p-149f, 0x1.fffffep127f});
  CHECK((l[0] == 0.0f && !std::signbit(l[0])));
  CHECK(l[1] == -kInfinity);
  CHECK(l[2] == -kInfinity);
  CHECK(l[3] == kInfinity);
  CHECK(std::isnan(l[4]));
  CHECK(std::isnan(l[5]));
  CHECK(std::isnan(l[6]));
  CHECK(l[7] == Approx(-103.2789299));
  CHECK(l[8] == Approx(88.7228391));
}

TEST_CASE("exp of numbers up to 88 has the bits of exp", "[kernels][simd]") {
  const Isa isa = GENERATE(from_range(supported_isas()));
  const UseIsa use(isa);
  CAPTURE(name_of(isa));
  std::vector<float> x = {-kInfinity, std::numeric_limits<float>::quiet_NaN()};
  for (const float value : floats()) x.push_back(std::min(value, 88.0f));
  for (int i = -2000; i <= 2000; ++i) {
    x.push_back(-0x1.5d589ep6f + float(i) * 0x1p-17f);
    x.push_back(88.0f - float(i + 2000) * 0x1p-17f);
  }
  const std::vector<float> wanted = probe(SimdProbe::kExp, x);
  for (const SimdProbe::Function function : {SimdProbe::kExpTo88, SimdProbe::kExpTo88Flushed}) {
    CAPTURE(function);
    const std::vector<float> got = probe(function, x);
    size_t different = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      different += std::bit_cast<uint32_t>(got[i]) != std::bit_cast<uint32_t>(wanted[i]);
    }
    CHECK(different == 0);
  }
}

TEST_CASE("lanes move to where they are told", "[kernels][simd]") {
  const Isa isa = GENERATE(from_range(supported_isas()));
  const UseIsa use(isa);
  CAPTURE(name_of(isa));
  std::vector<float> x(256);
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(i);
  const std::vector<float> swapped = probe(SimdProbe::kSwapPairs, x), transposed = probe(SimdProbe::kTranspose, x);
  const std::vector<float> sums = probe(SimdProbe::kSumFloat64, x);
  for (size_t i = 0; i < x.size(); ++i) {
    CHECK(swapped[i] == float(i ^ 1));
    CHECK(transposed[i] == float(i % 16 * 16 + i / 16));
    const double first = double(i / 16 * 16);
    CHECK(sums[i] == float(16 * first * first + 2 * first * 120 + 1240 + 16));
  }
}

TEST_CASE("lines of codes are decoded and transposed at once", "[kernels][simd]") {
  const UseIsa use(GENERATE(from_range(supported_isas())));
  std::vector<float> x(256);
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::bit_cast<float>(uint32_t(i));  // all codes, one a lane
  const std::vector<float> numbers = probe(SimdProbe::kE4m3, x), transposed = probe(SimdProbe::kE4m3Lines, x);
  for (size_t i = 0; i < x.size(); ++i) {
    const float number = numbers[i % 16 * 16 + i / 16];
    CHECK((transposed[i] == number || (std::isnan(number) && std::fabs(transposed[i]) == 480.0f)));
  }
}

TEST_CASE("the mathematics has the same bits on every instruction set", "[kernels][simd]") {
  const std::vector<float> x = floats();
  check_same_bits([&](std::string& bytes) {
    for (const auto function : {SimdProbe::kExp, SimdProbe::kSigmoid, SimdProbe::kSumFloat64}) {
      append_bytes(bytes, probe(function, x, here()));
    }
    std::vector<float> l = probe(SimdProbe::kLog, x, here());
    for (float& value : l) value = std::isnan(value) ? 0.0f : value;  // the sign of a made NaN is no one's promise
    append_bytes(bytes, l);
  });
}

// Bits of every kind, NaN and subnormal numbers among them, in an order that brings different kinds together.
std::vector<float> any_bits() {
  const RandomStream random(7, "bits");
  std::vector<float> x = {0.0f, -0.0f, kInfinity, -kInfinity, 0x1p-149f, 0x1p31f, -0x1p31f, 0x1.fffffep30f, 448.0f};
  const uint32_t kinds[] = {0, 0x7f800000u, 0x40000000u, 0x4b000000u, 0x3c000000u};  // exponents to be met often
  for (uint64_t i = 0; i < 40000; ++i) {
    const uint32_t u = uint32_t(random.bits(i));
    x.push_back(std::bit_cast<float>(i % 2 == 0 ? u : (u & 0x807fffffu) | kinds[i / 2 % 5]));
  }
  return x;
}

TEST_CASE("what kernels are made of has the same bits on every instruction set", "[kernels][simd]") {
  const std::vector<float> x = any_bits();
  check_same_bits([&](std::string& bytes) {
    for (int function = SimdProbe::kMax; function <= SimdProbe::kEncodeE4m3; ++function) {
      append_bytes(bytes, probe(SimdProbe::Function(function), x, here()));
    }
  });
}

TEST_CASE("of two numbers one of which is NaN the maximum is the second", "[kernels][simd]") {
  const Isa isa = GENERATE(from_range(supported_isas()));
  const UseIsa use(isa);
  const size_t lane = GENERATE(range(0, 16));
  CAPTURE(name_of(isa), lane);
  std::vector<float> x(16);
  for (size_t i = 0; i < 16; ++i) x[i] = float(i) - 100.0f;
  x[lane] = std::numeric_limits<float>::quiet_NaN();
  // The halves are compared, then their halves: a NaN stays if it is the second of each pair it comes to, and else has
  // erased the second of those it met before.
  std::vector<float> halves = x;
  for (size_t half = 8; half >= 1; half /= 2) {
    for (size_t i = 0; i < half; ++i) halves[i] = halves[i] > halves[i + half] ? halves[i] : halves[i + half];
  }
  const float got = probe(SimdProbe::kReduceMax, x)[0];
  CHECK((got == halves[0] || (std::isnan(got) && std::isnan(halves[0]))));
  CHECK(std::isnan(probe(SimdProbe::kMax, x)[lane ^ 1]));
  CHECK(probe(SimdProbe::kMax, x)[lane] == x[lane ^ 1]);
  CHECK(std::isnan(probe(SimdProbe::kMin, x)[lane ^ 1]));
  CHECK(probe(SimdProbe::kMin, x)[lane] == x[lane ^ 1]);
}

}  // namespace octet::test
