#include "core/base/fp8.h"

#include <cstring>
#include <limits>
#include <string>

#include "tests/support/numeric.h"

namespace octet::test {
namespace {

// CRC-32 as zlib computes it (ISO 3309), bit by bit.
uint32_t crc32(const std::string& bytes) {
  uint32_t crc = ~0u;
  for (const char byte : bytes) {
    crc ^= uint8_t(byte);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
  }
  return ~crc;
}

float from_bf16_bits(uint32_t bits) { return std::bit_cast<float>(bits << 16); }

// All 65,536 bfloat16 patterns in order, encoded.
template <class Encode>
std::string encode_all_bf16(Encode&& encode) {
  std::string codes;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) codes += char(encode(from_bf16_bits(bits)).bits);
  return codes;
}

template <class Code>
std::string decode_all() {
  std::string text;
  for (int code = 0; code < 256; ++code) {
    const float value = decode(Code{uint8_t(code)});
    char bytes[4];
    std::memcpy(bytes, &value, 4);
    text.append(bytes, 4);
  }
  return text;
}

// The nearest code by search over all of them: ties go to the even code, as neighbours are neighbouring codes.
template <class Code>
uint8_t nearest(float x, uint8_t largest_code) {
  uint8_t best = 0;
  double best_off = std::numeric_limits<double>::infinity();
  for (int code = 0; code <= largest_code; ++code) {
    const double off = std::abs(double(decode(Code{uint8_t(code)})) - std::abs(double(x)));
    if (off < best_off || (off == best_off && code % 2 == 0)) best = uint8_t(code), best_off = off;
  }
  return uint8_t(best | (std::signbit(x) ? 0x80 : 0));
}

}  // namespace

TEST_CASE("the CRC of the test follows its check value", "[base][fp8]") { CHECK(crc32("123456789") == 0xcbf43926u); }

TEST_CASE("FP8 casts have the fingerprints of CUDA's own", "[base][fp8]") {
  CHECK(crc32(decode_all<float8_e4m3>()) == 0x2fdee9acu);
  CHECK(crc32(decode_all<float8_e5m2>()) == 0x3d83fd11u);
  const auto special = Fp8Overflow::kSpecial;
  CHECK(crc32(encode_all_bf16([&](float x) { return encode_e4m3(x, special); })) == 0x3a170622u);
  CHECK(crc32(encode_all_bf16([](float x) { return encode_e4m3(x); })) == 0x452a7ae4u);
  CHECK(crc32(encode_all_bf16([&](float x) { return encode_e5m2(x, special); })) == 0x5af1edefu);
  CHECK(crc32(encode_all_bf16([](float x) { return encode_e5m2(x); })) == 0x62c73e5eu);
}

TEST_CASE("every FP8 code decodes and encodes to itself", "[base][fp8]") {
  for (int code = 0; code < 256; ++code) {
    CAPTURE(code);
    const float e4m3 = decode(float8_e4m3{uint8_t(code)}), e5m2 = decode(float8_e5m2{uint8_t(code)});
    const int magnitude = code & 0x7f;
    CHECK(std::isnan(e4m3) == (magnitude == 0x7f));
    CHECK(encode_e4m3(e4m3, Fp8Overflow::kSpecial).bits == (magnitude == 0x7f ? 0x7f : code));
    CHECK(std::isnan(e5m2) == (magnitude > 0x7c));
    CHECK(encode_e5m2(e5m2, Fp8Overflow::kSpecial).bits == (magnitude > 0x7c ? 0x7f : code));
  }
}

TEST_CASE("encoding finds the nearest of all codes", "[base][fp8]") {
  for (uint32_t bits = 0; bits < 0x10000; bits += 7) {
    const float x = from_bf16_bits(bits);
    if (!(std::abs(x) < 0x1p20f)) continue;  // beyond, distances round to equal in float64
    CAPTURE(x);
    REQUIRE(encode_e4m3(x).bits == nearest<float8_e4m3>(x, 0x7e));
    REQUIRE(encode_e5m2(x).bits == nearest<float8_e5m2>(x, 0x7b));
  }
}

TEST_CASE("ties, subnormals and the edge of the range round as stated", "[base][fp8]") {
  struct Case {
    float x;
    int e4m3_saturated, e4m3_special, e5m2_saturated, e5m2_special;
  };
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const Case cases[] = {
      {0.0f, 0x00, 0x00, 0x00, 0x00},
      {-0.0f, 0x80, 0x80, 0x80, 0x80},
      {std::numeric_limits<float>::denorm_min(), 0x00, 0x00, 0x00, 0x00},
      {0x1p-10f, 0x00, 0x00, 0x14, 0x14},  // half of the smallest E4M3: to even, 0
      {std::nextafter(0x1p-10f, 1.0f), 0x01, 0x01, 0x14, 0x14},
      {-0x1p-17f, 0x80, 0x80, 0x80, 0x80},  // half of the smallest E5M2
      {0x1.8p-9f, 0x02, 0x02, 0x1a, 0x1a},  // between 1 and 2 of the subnormals: to even, 2
      {0x1.ep-7f, 0x08, 0x08, 0x24, 0x24},  // 7.5 of the subnormals: to the first normal number
      {1.0625f, 0x38, 0x38, 0x3c, 0x3c},    // half way between 1 and 1.125
      {1.1875f, 0x3a, 0x3a, 0x3d, 0x3d},    // half way between 1.125 and 1.25
      {464.0f, 0x7e, 0x7e, 0x5f, 0x5f},     // half a step above 448: to even, 448
      {std::nextafter(464.0f, 1e9f), 0x7e, 0x7f, 0x5f, 0x5f},
      {-465.0f, 0xfe, 0xff, 0xdf, 0xdf},
      {std::nextafter(61440.0f, 0.0f), 0x7e, 0x7f, 0x7b, 0x7b},
      {61440.0f, 0x7e, 0x7f, 0x7b, 0x7c},
      {inf, 0x7e, 0x7f, 0x7b, 0x7c},
      {-inf, 0xfe, 0xff, 0xfb, 0xfc},
      {nan, 0x7f, 0x7f, 0x7f, 0x7f},
      {-nan, 0x7f, 0x7f, 0x7f, 0x7f},
  };
  for (const Case& c : cases) {
    CAPTURE(c.x);
    CHECK(int(encode_e4m3(c.x).bits) == c.e4m3_saturated);
    CHECK(int(encode_e4m3(c.x, Fp8Overflow::kSpecial).bits) == c.e4m3_special);
    CHECK(int(encode_e5m2(c.x).bits) == c.e5m2_saturated);
    CHECK(int(encode_e5m2(c.x, Fp8Overflow::kSpecial).bits) == c.e5m2_special);
  }
}

TEST_CASE("E8M0 holds the exponents of powers of two", "[base][fp8]") {
  for (int code = 0; code < 255; ++code) {
    CHECK(double(decode_e8m0(uint8_t(code))) == std::ldexp(1.0, code - 127));
    CHECK(int(encode_e8m0(decode_e8m0(uint8_t(code)))) == code);
  }
  CHECK(std::isnan(decode_e8m0(0xff)));
  CHECK(int(encode_e8m0(std::numeric_limits<float>::quiet_NaN())) == 0xff);
  for (const float wrong : {0.0f, -1.0f, 3.0f, 0x1p-128f, std::numeric_limits<float>::infinity()}) {
    CHECK_THROWS_AS(encode_e8m0(wrong), Error);
  }
}

TEST_CASE("power_of_two_scale is the smallest power of two that brings amax to 448", "[base][fp8]") {
  CHECK(power_of_two_scale(0.0f) == 1.0f);
  CHECK(power_of_two_scale(448.0f) == 1.0f);
  CHECK(power_of_two_scale(std::nextafter(448.0f, 1e9f)) == 2.0f);
  CHECK(power_of_two_scale(std::numeric_limits<float>::max()) == 0x1p120f);
  CHECK(power_of_two_scale(std::numeric_limits<float>::min()) == 0x1p-126f);
  CHECK(power_of_two_scale(std::numeric_limits<float>::denorm_min()) == 0x1p-126f);
  int64_t wrong = 0;
  for (uint32_t mantissa = 0; mantissa < 1u << 23; ++mantissa) {  // every mantissa, at an exponent that moves with it
    const uint32_t field = 10 + mantissa % 245;
    const float amax = std::bit_cast<float>(field << 23 | mantissa);
    const double scale = power_of_two_scale(amax);
    int exponent;
    const bool is_power = std::frexp(scale, &exponent) == 0.5;
    wrong += !(is_power && double(amax) <= 448 * scale && double(amax) > 448 * (scale / 2));
  }
  CHECK(wrong == 0);
}

}  // namespace octet::test
