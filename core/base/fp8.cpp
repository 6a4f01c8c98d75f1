#include "core/base/fp8.h"

#include <bit>
#include <cmath>
#include <limits>

namespace octet {
namespace {

struct Format {
  int mantissa_bits, bias;
  double largest;
  uint8_t largest_code, beyond_code;
};
constexpr Format kE4M3{3, 7, 448.0, 0x7e, 0x7f}, kE5M2{2, 15, 57344.0, 0x7b, 0x7c};

uint8_t encode(float x, const Format& format, Fp8Overflow overflow) {
  if (std::isnan(x)) return 0x7f;
  const uint8_t sign = std::signbit(x) ? 0x80 : 0;
  const double magnitude = std::abs(double(x));
  const uint8_t beyond = overflow == Fp8Overflow::kSaturate ? format.largest_code : format.beyond_code;
  if (std::isinf(x)) return sign | beyond;
  // The distance between neighbours is 2^(exponent - mantissa_bits), and among subnormals that of the first normal one.
  const int smallest = 1 - format.bias;
  const int exponent = magnitude > 0 ? std::max(std::ilogb(magnitude), smallest) : smallest;
  const double rounded = std::nearbyint(std::ldexp(magnitude, format.mantissa_bits - exponent));
  if (std::ldexp(rounded, exponent - format.mantissa_bits) > format.largest) return sign | beyond;
  // Counting neighbours from 0: a subnormal counts from the start, a normal one from its power of two, whose hidden bit
  // makes `rounded` 2^mantissa_bits too large for the exponent field and one step of the field makes up for it.
  return sign | uint8_t(((exponent - smallest) << format.mantissa_bits) + int(rounded));
}

float decode(uint8_t code, const Format& format) {
  const int field = (code & 0x7f) >> format.mantissa_bits, mantissa = code & ((1 << format.mantissa_bits) - 1);
  const double significand = field == 0 ? mantissa : mantissa + (1 << format.mantissa_bits);
  const double magnitude = std::ldexp(significand, std::max(field, 1) - format.bias - format.mantissa_bits);
  return float(code & 0x80 ? -magnitude : magnitude);
}

}  // namespace

float8_e4m3 encode_e4m3(float x, Fp8Overflow overflow) { return {encode(x, kE4M3, overflow)}; }
float8_e5m2 encode_e5m2(float x, Fp8Overflow overflow) { return {encode(x, kE5M2, overflow)}; }

float decode(float8_e4m3 code) {
  if ((code.bits & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  return decode(code.bits, kE4M3);
}
float decode(float8_e5m2 code) {
  if ((code.bits & 0x7f) > 0x7c) return std::numeric_limits<float>::quiet_NaN();
  if ((code.bits & 0x7f) == 0x7c) return code.bits & 0x80 ? -INFINITY : INFINITY;
  return decode(code.bits, kE5M2);
}

uint8_t encode_e8m0(float x) {
  if (std::isnan(x)) return 0xff;
  require(x > 0 && std::isfinite(x) && std::ldexp(1.0, std::ilogb(x)) == double(x) && std::ilogb(x) >= -127,
          "encode_e8m0: {} came; wanted a power of two from 2^-127 to 2^127, or NaN", x);
  return uint8_t(std::ilogb(x) + 127);
}
float decode_e8m0(uint8_t code) {
  return code == 0xff ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, int(code) - 127);
}

float power_of_two_scale(float amax) {
  if (amax == 0.0f) return 1.0f;
  // amax = m 2^e with m of [1, 2), and 448 = 1.75 * 2^8: the exponent wanted is e - 8, and one more where m > 1.75.
  // Adding 0x1fffff carries into the exponent field exactly where the mantissa is above 0x600000, that is 1.75.
  const int field = int((std::bit_cast<uint32_t>(amax) + 0x1fffffu) >> 23) - 8;
  return std::bit_cast<float>(uint32_t(field < 1 ? 1 : field) << 23);
}

}  // namespace octet
