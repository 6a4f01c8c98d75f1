// What a product's block makes of h instead of storing it: the codes of h and of y (kernels/fp8_swiglu_gemm.h). The two
// parts of a tile are the same 128 columns of the gate and of up, so that a thread has both of each element that is its
// own, and four neighbouring lanes a block of 128 of a row. A warp works on eight rows at a time: their codes go
// through shared memory, where each row is 16 bytes longer than its codes, which keeps eight of them off each other's
// banks.
//
// The tensor cores stand still meanwhile, so what is rare is found out for a row and done apart: numbers that are not
// finite, beyond the limit or flushed to zero.
#pragma once

#include "kernels/cuda/gemm_tile.h"
#include "kernels/cuda/ptx/arithmetic.cuh"
#include "kernels/cuda/quantize_tile.cuh"
#include "kernels/cuda/swiglu_value.cuh"

namespace octet::kernels::cuda {

// A thread's pairs of bfloat16 of a row: of columns 8 i + 2 (lane mod 4) and the next.
inline constexpr int kRowPairs = 16;
struct RowPairs {
  uint32_t v[kRowPairs];
};
__device__ __forceinline__ float low_of(uint32_t pair) { return bit_cast<float>(pair << 16); }
__device__ __forceinline__ float high_of(uint32_t pair) { return bit_cast<float>(pair & 0xffff0000u); }

// Calls body(pair) for each, by a loop that is short.
template <class Body>
__device__ __forceinline__ void for_each_pair(RowPairs pairs, Body&& body) {
  OCTET_KEEP_LOOP
  for (int n = 0; n < kRowPairs; ++n) {
    body(pairs.v[0]);
    OCTET_UNROLL
    for (int i = 0; i + 1 < kRowPairs; ++i) pairs.v[i] = pairs.v[i + 1];
  }
}

// The bits of the largest and the smallest magnitude of bfloat16. A NaN is the largest.
struct Magnitudes {
  uint32_t most, least;

  static __device__ __forceinline__ Magnitudes of(const RowPairs& pairs) {
    constexpr int kChains = 4;
    uint32_t most[kChains], least[kChains];
    OCTET_UNROLL
    for (int i = 0; i < kRowPairs; ++i) {
      const int chain = i % kChains;
      most[chain] = i < kChains ? pairs.v[i] : ptx::larger_magnitudes(most[chain], pairs.v[i]);
      least[chain] = i < kChains ? pairs.v[i] : ptx::smaller_magnitudes(least[chain], pairs.v[i]);
    }
    OCTET_UNROLL
    for (int chain = 1; chain < kChains; ++chain) {
      most[0] = ptx::larger_magnitudes(most[0], most[chain]);
      least[0] = ptx::smaller_magnitudes(least[0], least[chain]);
    }
    const uint32_t a = most[0] & 0x7fffu, b = most[0] >> 16 & 0x7fffu;
    const uint32_t c = least[0] & 0x7fffu, d = least[0] >> 16 & 0x7fffu;
    return {a < b ? b : a, c < d ? c : d};
  }
  __device__ __forceinline__ bool is_finite() const { return most < 0x7f80u; }
};

// The scale of a block, of which this thread has 32 numbers.
struct RowScale {
  PowerOfTwo power;
  bool is_counted;  // some of this thread's numbers are flushed, or not finite

  __device__ __forceinline__ RowScale(const RowPairs& pairs, const Magnitudes& magnitudes) {
    uint32_t most = magnitudes.most;
    if (!magnitudes.is_finite()) {
      most = 0;
      for_each_pair(pairs, [&](uint32_t pair) {
        const uint32_t low = finite_bits(low_of(pair)) >> 16, high = finite_bits(high_of(pair)) >> 16;
        const uint32_t larger = low < high ? high : low;
        most = most < larger ? larger : most;
      });
    }
    power = power_of_two(warp_max<4>(most) << 16);
    is_counted = !magnitudes.is_finite() || low_of(magnitudes.least) * power.inv_scale <= 0x1p-10f;
  }
};

struct SwigluCodes {
  const float* weights;  // null: all 1
  float limit;           // as limit_of gives it
  uint8_t* h_codes;      // null: none
  int64_t h_codes_step;  // from one row to the next
  float* h_scale;
  int64_t h_scale_step;
  uint8_t* y_codes;
  int64_t y_codes_step;
  float* y_scale;
  int64_t y_scale_step;
  QuantizeStats* stats;  // null: none
  const int64_t* num_rows;
  int64_t R, F;

  static constexpr int kRowsAtOnce = 8, kRowBytes = kBlock + 16, kMatrixBytes = kRowsAtOnce * kRowBytes;
  static constexpr uint32_t kWarpBytes = 3 * kMatrixBytes;  // of shared memory

  // Once for all that there is.
  __device__ __forceinline__ void add_count() const {
    if (stats == nullptr) return;
    atomic_add(&stats->count, (num_rows == nullptr ? R : *num_rows) * F * (h_codes != nullptr ? 3 : 1));
  }

  // Of 64 rows from `first` on, of which `rows` are there, and 128 columns from `column` on of the gate and of up: sums
  // as wgmma leaves them. shared: of this warp, on a boundary of 16 bytes.
  __device__ __forceinline__ void store(const float (&gate)[64], const float (&up)[64], int64_t first, int rows,
                                        int column, uint32_t shared) const {
    const int lane = int(threadIdx.x) % kWarp, first_of_warp = int(threadIdx.x) % 128 / kWarp * 16;
    RowPairs gates[2], ups[2];
    float row_weights[2];
    OCTET_UNROLL
    for (int half = 0; half < 2; ++half) {
      OCTET_UNROLL
      for (int i = 0; i < kRowPairs; ++i) {
        const int at = 4 * i + 2 * half;
        gates[half].v[i] = ptx::bf16x2_from_floats(gate[at], gate[at + 1]);
        ups[half].v[i] = ptx::bf16x2_from_floats(up[at], up[at + 1]);
      }
      const int row = first_of_warp + half * kRowsAtOnce + lane / 4;
      row_weights[half] = row < rows ? weight_of_row(weights, first + row) : 0.0f;
    }
    OCTET_KEEP_LOOP
    for (int row = first_of_warp; row < first_of_warp + 2 * kRowsAtOnce; row += kRowsAtOnce) {
      if (row >= rows) return;
      store_rows(gates[0], ups[0], row_weights[0], first + row, rows - row, column, shared);
      gates[0] = gates[1], ups[0] = ups[1], row_weights[0] = row_weights[1];
    }
  }

 private:
  __device__ __forceinline__ void store_rows(const RowPairs& gates, const RowPairs& ups, float weight, int64_t first,
                                             int rows, int column, uint32_t shared) const {
    const int lane = int(threadIdx.x) % kWarp, quarter = lane % 4;
    const bool has_h = h_codes != nullptr, is_there = lane / 4 < rows;
    const Magnitudes of_gates = Magnitudes::of(gates), of_ups = Magnitudes::of(ups);
    const RowPairs ys = values_of(gates, ups, weight, of_gates, of_ups);
    const Magnitudes of_ys = Magnitudes::of(ys);
    const RowScale gate_scale(gates, of_gates), up_scale(ups, of_ups), y_scale_of_row(ys, of_ys);

    float* to_scale = nullptr;
    if (quarter == 2) to_scale = y_scale + (first + lane / 4) * y_scale_step + column / kBlock;
    if (quarter < 2 && has_h) {
      to_scale = h_scale + (first + lane / 4) * h_scale_step + (column + quarter * F) / kBlock;
    }
    if (to_scale != nullptr && is_there) {
      *to_scale = (quarter == 0 ? gate_scale : quarter == 1 ? up_scale : y_scale_of_row).power.scale;
    }

    const Shared<uint16_t> codes = dynamic_shared<uint16_t>(shared, int(kWarpBytes / 2));
    const int place = lane / 4 * (kRowBytes / 2) + quarter;
    __syncwarp();  // the last rows' codes have been read
    if (has_h) {
      write_codes(codes, place, gates, gate_scale);
      write_codes(codes, place + kMatrixBytes / 2, ups, up_scale);
    }
    write_codes(codes, place + 2 * kMatrixBytes / 2, ys, y_scale_of_row);
    __syncwarp();
    const Shared<uint4> pieces = codes.template as<uint4>();
    if (has_h) {
      store_codes_of(pieces, 0, h_codes + first * h_codes_step + column, h_codes_step, rows);
      store_codes_of(pieces, 1, h_codes + first * h_codes_step + column + F, h_codes_step, rows);
    }
    store_codes_of(pieces, 2, y_codes + first * y_codes_step + column, y_codes_step, rows);

    const bool is_counted =
        is_there && (y_scale_of_row.is_counted || (has_h && (gate_scale.is_counted || up_scale.is_counted)));
    if (stats == nullptr || ballot(is_counted) == 0) return;
    Counts counts;
    if (is_there && has_h) count(gates, gate_scale, counts), count(ups, up_scale, counts);
    if (is_there) count(ys, y_scale_of_row, counts);
    const int flushed = warp_sum(counts.flushed), saturated = warp_sum(counts.saturated);
    const int non_finite = warp_sum(counts.non_finite);
    if (lane != 0) return;
    atomic_add(&stats->flushed, flushed);
    atomic_add(&stats->saturated, saturated);
    atomic_add(&stats->non_finite, non_finite);
  }

  // y of this thread's elements.
  __device__ __forceinline__ RowPairs values_of(const RowPairs& gates, const RowPairs& ups, float weight,
                                                const Magnitudes& of_gates, const Magnitudes& of_ups) const {
    RowPairs ys;
    const float most_gate = low_of(of_gates.most), most_up = low_of(of_ups.most);
    if (most_gate <= kMostGate && most_gate <= limit && most_up <= limit) {
      OCTET_UNROLL
      for (int i = 0; i < kRowPairs; ++i) {
        ys.v[i] = ptx::bf16x2_from_floats(weight * swiglu_within(low_of(gates.v[i]), low_of(ups.v[i])),
                                          weight * swiglu_within(high_of(gates.v[i]), high_of(ups.v[i])));
      }
      return ys;
    }
    ys = {};
    RowPairs left = ups;
    for_each_pair(gates, [&](uint32_t pair) {
      const uint32_t y = ptx::bf16x2_from_floats(weight * swiglu_of(low_of(pair), low_of(left.v[0]), limit),
                                                 weight * swiglu_of(high_of(pair), high_of(left.v[0]), limit));
      OCTET_UNROLL
      for (int i = 0; i + 1 < kRowPairs; ++i) left.v[i] = left.v[i + 1], ys.v[i] = ys.v[i + 1];
      ys.v[kRowPairs - 1] = y;
    });
    return ys;
  }

  static __device__ __forceinline__ void write_codes(const Shared<uint16_t>& codes, int place, const RowPairs& pairs,
                                                     const RowScale& scale) {
    // Exact in bfloat16 too, but for what is far below the smallest code.
    const uint32_t inv_scale = bit_cast<uint32_t>(scale.power.inv_scale), both = inv_scale | inv_scale >> 16;
    OCTET_UNROLL
    for (int i = 0; i < kRowPairs; ++i) {
      const uint32_t scaled = ptx::multiply_pairs(pairs.v[i], both);
      codes[place + 4 * i] = ptx::e4m3x2_from_floats(low_of(scaled), high_of(scaled));
    }
  }
  // Sixteen bytes of two rows by each lane.
  static __device__ __forceinline__ void store_codes_of(const Shared<uint4>& pieces, int matrix, uint8_t* to,
                                                        int64_t step, int rows) {
    const int row = int(threadIdx.x) % kWarp / 8, piece = int(threadIdx.x) % 8;
    OCTET_UNROLL
    for (int r = 0; r < kRowsAtOnce; r += 4) {
      const uint4 words = pieces[(matrix * kMatrixBytes + (row + r) * kRowBytes) / 16 + piece];
      if (row + r < rows) store_words(to + (row + r) * step + piece * 16, words);
    }
  }
  static __device__ __forceinline__ void count(const RowPairs& pairs, const RowScale& scale, Counts& counts) {
    for_each_pair(pairs, [&](uint32_t pair) {
      count_code(low_of(pair), low_of(pair) * scale.power.inv_scale, counts);
      count_code(high_of(pair), high_of(pair) * scale.power.inv_scale, counts);
    });
  }
};

}  // namespace octet::kernels::cuda
