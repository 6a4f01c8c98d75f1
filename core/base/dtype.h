// The element types of tensors, their C++ types and sizes.
#pragma once

#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <string_view>

#include "core/base/error.h"

namespace octet {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat8E4M3, kFloat8E5M2, kInt32, kInt64, kUInt8 };

// 16 bits: sign, 8 exponent bits, 7 mantissa bits. Conversion from float rounds to nearest, ties to even; every NaN
// becomes the quiet NaN with the sign kept.
struct bfloat16 {
  uint16_t bits = 0;
  bfloat16() = default;
  explicit bfloat16(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
      bits = uint16_t((u >> 16) | 0x0040u);
    } else {
      bits = uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
    }
  }
  explicit operator float() const { return std::bit_cast<float>(uint32_t(bits) << 16); }
  explicit operator double() const { return double(float(*this)); }
};
// Storage of one FP8 value; core/base/fp8.h converts.
struct float8_e4m3 {
  uint8_t bits = 0;
};
struct float8_e5m2 {
  uint8_t bits = 0;
};

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kInt64:
      return 8;
    case DType::kBFloat16:
      return 2;
    case DType::kFloat8E4M3:
    case DType::kFloat8E5M2:
    case DType::kUInt8:
      return 1;
  }
  return 0;
}

constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat8E4M3:
      return "float8_e4m3";
    case DType::kFloat8E5M2:
      return "float8_e5m2";
    case DType::kInt32:
      return "int32";
    case DType::kInt64:
      return "int64";
    case DType::kUInt8:
      return "uint8";
  }
  return "?";
}

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kFloat32;
};
template <>
struct DTypeOf<bfloat16> {
  static constexpr DType value = DType::kBFloat16;
};
template <>
struct DTypeOf<float8_e4m3> {
  static constexpr DType value = DType::kFloat8E4M3;
};
template <>
struct DTypeOf<float8_e5m2> {
  static constexpr DType value = DType::kFloat8E5M2;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::kInt32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::kInt64;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::kUInt8;
};
template <class T>
inline constexpr DType dtype_of = DTypeOf<T>::value;

// Calls visit.operator()<float>() or <bfloat16>(), by dtype.
template <class Visit>
decltype(auto) visit_float(DType dtype, Visit&& visit) {
  if (dtype == DType::kFloat32) return visit.template operator()<float>();
  require(dtype == DType::kBFloat16, "dtype is {}; wanted float32 or bfloat16", name_of(dtype));
  return visit.template operator()<bfloat16>();
}

}  // namespace octet

template <>
struct fmt::formatter<octet::DType> : fmt::formatter<std::string_view> {
  auto format(octet::DType dtype, fmt::format_context& context) const {
    return fmt::formatter<std::string_view>::format(octet::name_of(dtype), context);
  }
};
