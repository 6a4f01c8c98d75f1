// The arithmetic of the tensor core of compute capability 9.0 (MMA-Sim, arXiv:2511.10909; docs/numerics.md, section 4):
// the products of one step and the sum so far are brought to the largest exponent among those that are not zero, cut
// toward zero after some fraction bits, added exactly, and the sum is cut toward zero. A product has the sum of its
// factors' exponents and the product of their significands, in [0, 4). A NaN among them gives 0x7fffffff.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/cuda/emulation/block.h"
#include "kernels/cuda/gemm_tile.h"

namespace octet::emulation {

// significand / 2^fraction_bits * 2^exponent
struct Term {
  int64_t significand = 0;
  int exponent = 0;
};

struct E4m3 {
  static constexpr int kDepth = 32;           // products of a step
  static constexpr int kBytes = 1;            // of an element
  static constexpr int kSignificandBits = 3;  // behind the point
  static constexpr int kKeptBits = 13;        // of a term, behind the point
  static constexpr int kResultBits = 13;      // of the sum, behind its leading one
  static bool is_nan(uint32_t code) { return (code & 0x7f) == 0x7f; }
  static bool is_infinite(uint32_t) { return false; }
  static Term term(uint32_t code) {
    const int exponent = int(code >> 3 & 15), fraction = int(code & 7);
    const int64_t significand = exponent == 0 ? fraction : 8 + fraction;
    return {(code & 0x80) != 0 ? -significand : significand, std::max(exponent, 1) - 7};
  }
};
struct Bf16 {
  static constexpr int kDepth = 16;
  static constexpr int kBytes = 2;
  static constexpr int kSignificandBits = 7;
  static constexpr int kKeptBits = 25;
  static constexpr int kResultBits = 23;
  static bool is_nan(uint32_t bits) { return (bits & 0x7fff) > 0x7f80; }
  static bool is_infinite(uint32_t bits) { return (bits & 0x7fff) == 0x7f80; }
  static Term term(uint32_t bits) {
    const int exponent = int(bits >> 7 & 255), fraction = int(bits & 127);
    const int64_t significand = exponent == 0 ? fraction : 128 + fraction;
    return {(bits & 0x8000) != 0 ? -significand : significand, std::max(exponent, 1) - 127};
  }
};

// c + sum over kDepth of a[k] * b[k]. a and b: the bits of the elements.
template <class Format>
float multiply_add(const uint32_t* a, const uint32_t* b, float c) {
  constexpr int kFraction = 2 * Format::kSignificandBits;
  constexpr int64_t kHidden = int64_t(1) << 23;
  const uint32_t c_bits = std::bit_cast<uint32_t>(c);
  bool is_nan = std::isnan(c), has_infinity = std::isinf(c);
  for (int k = 0; k < Format::kDepth; ++k) {
    is_nan = is_nan || Format::is_nan(a[k]) || Format::is_nan(b[k]);
    has_infinity = has_infinity || Format::is_infinite(a[k]) || Format::is_infinite(b[k]);
  }
  if (!is_nan && has_infinity) {
    // Infinities of both signs, or one times zero, are a NaN; else the sum is infinite.
    float sum = std::isinf(c) ? c : 0.0f;
    for (int k = 0; k < Format::kDepth; ++k) {
      if (!Format::is_infinite(a[k]) && !Format::is_infinite(b[k])) continue;
      const int64_t x = Format::term(a[k]).significand, y = Format::term(b[k]).significand;
      if (x == 0 || y == 0) is_nan = true;
      sum += std::copysign(INFINITY, float((x < 0) != (y < 0) ? -1 : 1));
    }
    if (!is_nan && !std::isnan(sum)) return sum;
    is_nan = true;
  }
  if (is_nan) return std::bit_cast<float>(0x7fffffffu);

  Term terms[Format::kDepth];
  const int c_exponent = std::max(int(c_bits >> 23 & 255), 1) - 127;
  const int64_t c_magnitude = int64_t(c_bits & (kHidden - 1)) + ((c_bits >> 23 & 255) != 0 ? kHidden : 0);
  int top = c_magnitude != 0 ? c_exponent : -1000;
  for (int k = 0; k < Format::kDepth; ++k) {
    const Term x = Format::term(a[k]), y = Format::term(b[k]);
    terms[k] = {x.significand * y.significand, x.exponent + y.exponent};
    if (terms[k].significand != 0) top = std::max(top, terms[k].exponent);
  }
  // In units of 2^(top - kKeptBits); more than 62 places to the right nothing is left.
  const auto cut = [](int64_t magnitude, int left) {
    return left >= 0 ? magnitude << left : left < -62 ? 0 : magnitude >> -left;
  };
  int64_t sum = 0;
  if (c_magnitude != 0) {
    const int64_t kept = cut(c_magnitude, Format::kKeptBits - 23 + c_exponent - top);
    sum += (c_bits >> 31) != 0 ? -kept : kept;
  }
  for (const Term& term : terms) {
    if (term.significand == 0) continue;
    const int64_t kept = cut(std::abs(term.significand), Format::kKeptBits - kFraction + term.exponent - top);
    sum += term.significand < 0 ? -kept : kept;
  }
  if (sum == 0) return 0.0f;
  uint64_t magnitude = uint64_t(std::abs(sum));
  const int excess = int(std::bit_width(magnitude)) - 1 - Format::kResultBits;
  if (excess > 0) magnitude = magnitude >> excess << excess;
  const float result = float(std::ldexp(double(magnitude), top - Format::kKeptBits));
  return sum < 0 ? -result : result;
}

// One wgmma m64n128: this thread's 64 elements of it. An operand lies along k, or, transposed, along its lines: 64 of
// them, then the next k; k in groups of 8, and 64 more lines a leading distance behind.
template <class Format, bool a_is_transposed = false, bool b_is_transposed = false>
void multiply(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
  constexpr uint32_t kColumns = 128, kPieceBytes = 16, kAtomBytes = 1024;
  using kernels::cuda::kSwizzledRowBytes;
  using kernels::cuda::Place;
  using kernels::cuda::swizzled_address;
  using kernels::cuda::wgmma_place;
  constexpr uint32_t kStepBytes = uint32_t(Format::kDepth * Format::kBytes);
  const auto start = [](uint64_t descriptor) { return uint32_t(descriptor & 0x3fff) << 4; };
  const auto leading = [](uint64_t descriptor) { return uint32_t(descriptor >> 16 & 0x3fff) << 4; };
  const auto stride = [](uint64_t descriptor) { return uint32_t(descriptor >> 32 & 0x3fff) << 4; };
  // Before the swizzle; bytes from there on lie side by side up to a boundary of 16.
  const auto along_k = [&](uint64_t descriptor, uint32_t line, uint32_t k) {
    return start(descriptor) + line / 8 * stride(descriptor) + line % 8 * kSwizzledRowBytes +
           k * uint32_t(Format::kBytes);
  };
  const auto along_lines = [&](uint64_t descriptor, uint32_t line, uint32_t k) {
    constexpr uint32_t kLines = kSwizzledRowBytes / uint32_t(Format::kBytes);
    return start(descriptor) + line / kLines * leading(descriptor) + k / 8 * stride(descriptor) +
           k % 8 * kSwizzledRowBytes + line % kLines * uint32_t(Format::kBytes);
  };
  // Each lane looks after a part of what its warp reads, which is 16 rows of A and all of B.
  if (a >> 62 != 1 || b >> 62 != 1) fault("a matrix descriptor without 128-byte swizzling");
  const int thread = int(threadIdx.x % 128);
  const uint32_t lane = uint32_t(thread) % 32, warp = uint32_t(thread) / 32;
  const auto look = [&](uint32_t address) { check_async_read(swizzled_address(address), kPieceBytes); };
  const auto look_at = [&](bool is_transposed, uint64_t descriptor, uint32_t first, uint32_t lines) {
    constexpr uint32_t kElements = kPieceBytes / uint32_t(Format::kBytes);
    for (uint32_t piece = lane; piece < lines * kStepBytes / kPieceBytes; piece += 32) {
      if (is_transposed) {
        look(along_lines(descriptor, first + piece % (lines / kElements) * kElements, piece / (lines / kElements)));
      } else {
        look(along_k(descriptor, first + piece % lines, piece / lines * kElements));
      }
    }
  };
  look_at(a_is_transposed, a, warp * 16, 16);
  look_at(b_is_transposed, b, 0, kColumns);
  if (lane == 0) {  // wgmma.wait_group is the warp's; whole atoms, since none is written in parts
    const auto hold = [](uint32_t address) {
      begin_reading(Reader::kProduct, address / kAtomBytes * kAtomBytes, kAtomBytes);
    };
    const auto hold_all = [&](bool is_transposed, uint64_t descriptor, uint32_t first, uint32_t lines) {
      if (is_transposed) {
        for (uint32_t line = 0; line < lines; line += 64) {
          for (uint32_t k = 0; k < uint32_t(Format::kDepth); k += 8) hold(along_lines(descriptor, first + line, k));
        }
      } else {
        for (uint32_t line = 0; line < lines; line += 8) hold(along_k(descriptor, first + line, 0));
      }
    };
    hold_all(a_is_transposed, a, warp * 16, 16);
    hold_all(b_is_transposed, b, 0, kColumns);
  }
  const std::byte* const memory = dynamic_shared(0, 0);
  // Returns whether the line has anything but zeros: without, it leaves a sum as it is.
  const auto read = [&](bool is_transposed, uint64_t descriptor, uint32_t row, uint32_t(&line)[Format::kDepth]) {
    uint32_t any = 0;
    for (uint32_t k = 0; k < uint32_t(Format::kDepth); ++k) {
      const uint32_t address = is_transposed ? along_lines(descriptor, row, k) : along_k(descriptor, row, k);
      const std::byte* const at = memory + swizzled_address(address);
      line[k] = uint32_t(at[0]);
      if constexpr (Format::kBytes == 2) line[k] |= uint32_t(at[1]) << 8;
      any |= line[k] << (33 - 8 * Format::kBytes);  // without the sign
    }
    return any != 0;
  };
  float sums[64] = {};
  if (accumulate) {
    const float* before = sums_in_flight(d);
    std::copy_n(before != nullptr ? before : d, 64, sums);
  }
  uint32_t rows[2][Format::kDepth], column[Format::kDepth];
  bool has_row[2];
  for (int i = 0; i < 2; ++i) has_row[i] = read(a_is_transposed, a, uint32_t(wgmma_place(thread, 2 * i).row), rows[i]);
  for (int i = 0; i < int(kColumns) / 2; ++i) {
    const Place place = wgmma_place(thread, i);
    // Elements i and i + 2 are two rows of one column.
    if (i / 2 % 2 != 0 || (!has_row[0] && !has_row[1])) continue;
    const bool has_column = read(b_is_transposed, b, uint32_t(place.column), column);
    for (int half = 0; half < 2; ++half) {
      float& sum = sums[i + 2 * half];
      if (has_row[half] && has_column) sum = multiply_add<Format>(rows[half], column, sum);
    }
  }
  put_in_flight(d, sums, 64);
}

// ldmatrix.x4 and its transposing form, of this lane.
template <bool is_transposed>
void load_pieces(uint32_t (&pieces)[4], uint32_t address) {
  if (address % 16 != 0) fault("a misaligned ldmatrix");
  const Exchange& addresses = exchange(&address, sizeof address);
  const uint32_t lane = threadIdx.x % 32;
  for (uint32_t i = 0; i < 4; ++i) {
    pieces[i] = 0;
    for (uint32_t j = 0; j < 2; ++j) {
      const uint32_t row = is_transposed ? lane % 4 * 2 + j : lane / 4,
                     column = is_transposed ? lane / 4 : lane % 4 * 2 + j;
      uint32_t start;
      std::memcpy(&start, addresses[8 * i + row].data(), sizeof start);
      const std::byte* const at = dynamic_shared(start + 2 * column, 2);
      read_shared(at, 2);
      pieces[i] |= (uint32_t(at[0]) | uint32_t(at[1]) << 8) << 16 * j;
    }
  }
}

// mma.sync m16n8k16 of bfloat16: this lane's 4 elements of it.
inline void multiply_pieces(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const Exchange& lanes = exchange(mine, sizeof mine);
  const uint32_t lane = threadIdx.x % 32;
  // The 16 of k of a line lie with four lanes, two registers each.
  struct Line {
    uint32_t bits[Bf16::kDepth];
    bool is_zero = true, is_finite = true;
  };
  const auto read = [&](uint32_t first_lane, uint32_t low, uint32_t high) {
    Line line;
    for (uint32_t k = 0; k < uint32_t(Bf16::kDepth); ++k) {
      uint32_t registers[6];
      std::memcpy(registers, lanes[first_lane + k % 8 / 2].data(), sizeof registers);
      const uint32_t bits = line.bits[k] = registers[k < 8 ? low : high] >> k % 2 * 16 & 0xffff;
      line.is_zero = line.is_zero && (bits & 0x7fff) == 0;
      line.is_finite = line.is_finite && !Bf16::is_nan(bits) && !Bf16::is_infinite(bits);
    }
    return line;
  };
  const Line rows[2] = {read(lane / 4 * 4, 0, 2), read(lane / 4 * 4, 1, 3)};
  const Line columns[2] = {read(lane % 4 * 8, 4, 5), read(lane % 4 * 8 + 4, 4, 5)};
  for (uint32_t i = 0; i < 4; ++i) {
    const Line &row = rows[i / 2], &column = columns[i % 2];
    const bool adds_zeros = (row.is_zero && column.is_finite) || (column.is_zero && row.is_finite);
    d[i] = adds_zeros ? d[i] + 0.0f : multiply_add<Bf16>(row.bits, column.bits, d[i]);
  }
}

}  // namespace octet::emulation
