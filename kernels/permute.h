// Moves tokens to their experts and back. Rows are the T * K pairs (token, choice) sorted by expert and, within an
// expert, by token: row_of[t,k] is the place of pair (t, k) and source[r] the token of row r. Expert e owns rows
// offsets[e] .. offsets[e+1] - 1; an expert with no rows is a normal case.
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

struct BuildPermutation {
  ConstView indices;  // [T, K] int32 in [0, E)
  View offsets;       // [E + 1] int64
  View row_of;        // [T, K] int32
  View source;        // [T * K] int32
  View pairs = {};    // [T * K] int32: t K + k of each row; not defined: none

  KernelCost cost() const { return {.name = "build_permutation", .bytes = bytes_of(indices, row_of, source, pairs)}; }
};
struct GatherRows {
  // y[r,:] = x[source[r],:], any dtype
  ConstView x;              // [T, C]
  ConstView source;         // [R] int32
  View y;                   // [R, C] as x
  bool skips = false;       // source[r] may be -1: row r of y is left as it is
  ConstView num_rows = {};  // [1] int64: there are that many, the rest is left as it is; not defined: R

  KernelCost cost() const { return {.name = "gather_rows", .bytes = bytes_of(y, source, y)}; }
};
struct CombineForward {
  // y[t,:] = base[t,:] + sum_k row(row_of[t,k]), k in order, in float32, rounded once; row(r) is rows[r,:], and from
  // r = R on more_rows[r - R,:]
  ConstView rows;            // [R, D] float32 or bfloat16
  ConstView more_rows = {};  // [R2, D] as rows; not defined: none
  ConstView row_of;          // [T, K] int32
  ConstView base;            // [T, D] as rows; not defined: 0. May be y.
  View y;                    // [T, D] as rows

  KernelCost cost() const {
    const int64_t row_bytes = y.cols() * size_of(y.dtype());
    return {.name = "combine_forward", .bytes = row_of.num_elements() * row_bytes + bytes_of(row_of, base, y)};
  }
};
namespace cpu {
void build_permutation(const BuildPermutation& args, Stream& stream);
void gather_rows(const GatherRows& args, Stream& stream);
void combine_forward(const CombineForward& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void build_permutation(const BuildPermutation& args, Stream& stream);
void gather_rows(const GatherRows& args, Stream& stream);
void combine_forward(const CombineForward& args, Stream& stream);
}  // namespace cuda
inline void build_permutation(const BuildPermutation& args, Stream& stream) {
  dispatch<cpu::build_permutation, cuda::build_permutation>(args, stream);
}
inline void gather_rows(const GatherRows& args, Stream& stream) {
  dispatch<cpu::gather_rows, cuda::gather_rows>(args, stream);
}
inline void combine_forward(const CombineForward& args, Stream& stream) {
  dispatch<cpu::combine_forward, cuda::combine_forward>(args, stream);
}

}  // namespace octet::kernels
