// Eight-bit numbers and their power-of-two scales, one at a time: the plain reference of the vector casts in kernels/.
//
//              bias  layout  largest        smallest normal, subnormal  infinity    NaN
//   E4M3 (FN)     7  s.4.3   448    0x7e    2^-6,  2^-9                 none        0x7f 0xff
//   E5M2         15  s.5.2   57344  0x7b    2^-14, 2^-16                0x7c 0xfc   0x7d-0x7f 0xfd-0xff
//   E8M0        127  8       2^127  0xfe    2^-127 (no zero, no sign)   none        0xff
//
// (OCP 8-bit Floating Point Specification; OCP Microscaling Formats.) Encoding rounds to nearest, ties to even; -0
// keeps its sign; NaN becomes 0x7f, without one. Beyond the largest number kSaturate gives the largest number, from
// infinity too, and kSpecial gives what the format has for it: infinity in E5M2, NaN with the sign in E4M3.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"

namespace octet {

inline constexpr float kLargestE4M3 = 448.0f, kLargestE5M2 = 57344.0f;

enum class Fp8Overflow { kSaturate, kSpecial };

float8_e4m3 encode_e4m3(float x, Fp8Overflow overflow = Fp8Overflow::kSaturate);
float8_e5m2 encode_e5m2(float x, Fp8Overflow overflow = Fp8Overflow::kSaturate);
// Exact. Every NaN code gives the quiet NaN 0x7fc00000.
float decode(float8_e4m3 code);
float decode(float8_e5m2 code);

// The exponent code of a power of two, and back. x must be 2^e with e of [-127, 127], or NaN (0xff).
uint8_t encode_e8m0(float x);
float decode_e8m0(uint8_t code);

// 2^ceil(log2(amax / 448)): the smallest power of two that brings amax to 448 or below. 1 where amax is 0. amax is
// finite and not negative. The exponent is -126 at least, and 120 for the largest float, so the scale is a normal
// number and so is its reciprocal.
float power_of_two_scale(float amax);

}  // namespace octet
