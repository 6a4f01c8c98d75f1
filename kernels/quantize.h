// Between float and E4M3 with power-of-two scales (docs/numerics.md).
//   scale = 2^ceil(log2(amax / 448)) of a block, amax over its finite elements, 1 where amax is 0 (power_of_two_scale
//   of core/base/fp8.h);  code = e4m3(x / scale);  the real value is code * scale
// e4m3 rounds to nearest even and saturates at 448; NaN becomes 0x7f and infinities +-448: both are counted, not
// hidden. A block at a ragged edge is shorter, never padded with neighbours. The exponent of scale lies in [-126, 120],
// so that it and its reciprocal are normal float32 numbers. Three kinds of block: a row's 128 columns (activations and
// output gradients, 1x128), a column's 128 rows inside a group (operands of a weight gradient, 128x1), and a 128x128
// tile (weights). A grouped matrix of R rows is cut at offsets[0..G]; for weight gradients group g begins at row 128 *
// block_offsets[g] of the result and is padded with code 0 to a multiple of 128: block_offsets[g+1] = block_offsets[g]
// + ceil((offsets[g+1] - offsets[g]) / 128), P = 128 * block_offsets[G].
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

// Where a matrix of P rows and C columns that a weight gradient sums over its rows lies: as it is on a CPU; on a GPU
// each column by itself, on boundaries of 16 bytes, since the FP8 products of tensor cores read along what they sum
// only.
inline Shape column_codes_shape(int64_t P, int64_t C, Device device) {
  return device.is_cpu() ? Shape{P, C} : Shape{C, P};
}

struct QuantizeStats {
  int64_t count = 0;       // elements seen
  int64_t flushed = 0;     // not 0 before, 0 after
  int64_t saturated = 0;   // finite, beyond 448 * scale after rounding (never with these scales; a check on them)
  int64_t non_finite = 0;  // NaN or infinite
  bool operator==(const QuantizeStats&) const = default;
};

struct QuantizeRows {
  ConstView x;              // [R, C] float32 or bfloat16, rows may be strided
  View codes;               // [R, C] float8_e4m3
  View scale;               // [R, ceil(C/128)] float32
  QuantizeStats* stats;     // added to; null: none
  ConstView num_rows = {};  // [1] int64: there are that many, the rest is left as it is; not defined: R

  KernelCost cost() const { return {.name = "quantize_rows", .bytes = bytes_of(x, codes, scale)}; }
};
struct DequantizeRows {
  ConstView codes;  // [R, C] float8_e4m3
  ConstView scale;  // [R, ceil(C/128)] float32
  View x;           // [R, C] float32 or bfloat16

  KernelCost cost() const { return {.name = "dequantize_rows", .bytes = bytes_of(codes, scale, x)}; }
};
struct QuantizeColumns {
  ConstView x;              // [S, C] float32 or bfloat16
  ConstView rows = {};      // [R] int32: row r is row rows[r] of x; not defined: R = S and row r is r
  ConstView offsets;        // [G + 1] int64
  ConstView block_offsets;  // [G + 1] int64
  View codes;               // column_codes_shape(P, C) float8_e4m3
  View scale;               // [P/128, C] float32
  QuantizeStats* stats;     // added to; null: none
  // Also what QuantizeRows makes of x, in the same pass; not defined: none, as where rows are.
  View row_codes = {};  // [R, C] float8_e4m3
  View row_scale = {};  // [R, ceil(C/128)] float32
  QuantizeStats* row_stats = nullptr;

  KernelCost cost() const {
    const int64_t read_bytes = rows.is_defined() ? codes.num_elements() * size_of(x.dtype()) : bytes_of(x);
    return {.name = "quantize_columns", .bytes = read_bytes + bytes_of(rows, codes, scale, row_codes, row_scale)};
  }
};
struct RequantizeColumns {
  // As QuantizeColumns of the matrix whose row r is row rows[r] of codes * scale.
  ConstView codes;          // [S, C] float8_e4m3
  ConstView scale;          // [S, ceil(C/128)] float32
  ConstView rows = {};      // [R] int32; not defined: R = S and row r is r
  ConstView offsets;        // [G + 1] int64, offsets[G] = R
  ConstView block_offsets;  // [G + 1] int64
  View out_codes;           // column_codes_shape(P, C) float8_e4m3
  View out_scale;           // [P/128, C] float32
  QuantizeStats* stats;     // flushed: values that were not 0 before and are after. Null: none

  KernelCost cost() const {
    return {.name = "requantize_columns", .bytes = bytes_of(out_codes, rows, out_codes, out_scale)};
  }
};
struct QuantizeBlocks {
  ConstView x;           // [G, N, K] float32 or bfloat16, or [N, K]
  View codes;            // [G, N, K] float8_e4m3
  View scale;            // [G, ceil(N/128), ceil(K/128)] float32
  QuantizeStats* stats;  // added to; null: none

  KernelCost cost() const { return {.name = "quantize_blocks", .bytes = bytes_of(x, codes, scale)}; }
};
namespace cpu {
void quantize_rows(const QuantizeRows& args, Stream& stream);
void dequantize_rows(const DequantizeRows& args, Stream& stream);
void quantize_columns(const QuantizeColumns& args, Stream& stream);
void requantize_columns(const RequantizeColumns& args, Stream& stream);
void quantize_blocks(const QuantizeBlocks& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void quantize_rows(const QuantizeRows& args, Stream& stream);
void dequantize_rows(const DequantizeRows& args, Stream& stream);
void quantize_columns(const QuantizeColumns& args, Stream& stream);
void requantize_columns(const RequantizeColumns& args, Stream& stream);
void quantize_blocks(const QuantizeBlocks& args, Stream& stream);
}  // namespace cuda
inline void quantize_rows(const QuantizeRows& args, Stream& stream) {
  dispatch<cpu::quantize_rows, cuda::quantize_rows>(args, stream);
}
inline void dequantize_rows(const DequantizeRows& args, Stream& stream) {
  dispatch<cpu::dequantize_rows, cuda::dequantize_rows>(args, stream);
}
inline void quantize_columns(const QuantizeColumns& args, Stream& stream) {
  dispatch<cpu::quantize_columns, cuda::quantize_columns>(args, stream);
}
inline void requantize_columns(const RequantizeColumns& args, Stream& stream) {
  dispatch<cpu::requantize_columns, cuda::requantize_columns>(args, stream);
}
inline void quantize_blocks(const QuantizeBlocks& args, Stream& stream) {
  dispatch<cpu::quantize_blocks, cuda::quantize_blocks>(args, stream);
}

}  // namespace octet::kernels
