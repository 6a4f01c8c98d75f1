// The scaling-aware transpose: operands of a weight gradient whose scale is one for each 128 rows of a group by 128
// columns, made of codes of rows by shifting exponents only (kernels/quantize.h has the words).
//   tile scale = the largest scale of its rows that have a code other than 0 there, 1 where none has
//   code'      = e4m3(code * (row scale / tile scale)); NaN becomes 0x7f
// Exact but where code' is subnormal or 0, since the scales are powers of two. A row of zeros, whose scale says nothing
// of it, has no part in the tile's.
#pragma once

#include "kernels/quantize.h"

namespace octet::kernels {

struct RequantizeTiles {
  ConstView codes;          // [S, C] float8_e4m3
  ConstView scale;          // [S, ceil(C/128)] float32
  ConstView rows = {};      // [R] int32; not defined: R = S and row r is r
  ConstView offsets;        // [G + 1] int64, offsets[G] = R
  ConstView block_offsets;  // [G + 1] int64
  View out_codes;           // column_codes_shape(P, C) float8_e4m3
  View out_scale;           // [P/128, ceil(C/128)] float32
  QuantizeStats* stats;     // flushed: codes that were not 0 before and are after. Null: none

  KernelCost cost() const {
    return {.name = "requantize_tiles", .bytes = bytes_of(out_codes, rows, out_codes, out_scale)};
  }
};
namespace cpu {
void requantize_tiles(const RequantizeTiles& args, Stream& stream);
}
namespace cuda {
void requantize_tiles(const RequantizeTiles& args, Stream& stream);
}
inline void requantize_tiles(const RequantizeTiles& args, Stream& stream) {
  dispatch<cpu::requantize_tiles, cuda::requantize_tiles>(args, stream);
}

}  // namespace octet::kernels
