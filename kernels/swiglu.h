// The gated activation of a feed-forward layer (arXiv:2002.05202), times the router's weight of its row.
//   y[r,f] = w[r] a[r,f],  a[r,f] = silu(h[r,f]) * h[r,F+f],  silu(g) = g / (1 + exp(-g))
//   da[r,f] = w[r] dy[r,f],  dh[r,f] = da * up * s * (1 + g (1 - s)),  dh[r,F+f] = da * silu(g),  s = 1 / (1 + exp(-g))
//   dw[r] = sum_f dy[r,f] a[r,f]: of each 128 columns, and then these sums in order
// limit > 0: the gate is min(h[r,f], limit) and up is h[r,F+f] between -limit and limit; dh is 0 where that changed h.
// Arithmetic is float32. R may be 0. weights not defined: all 1. The FP8 forms quantise what they make in the same pass
// (kernels/quantize.h), each number rounded to bfloat16 before, and give the bits that separate passes would. num_rows,
// where it is defined: there are that many rows, and the rest of R is left as it is.
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"
#include "kernels/quantize.h"

namespace octet::kernels {

struct SwigluForward {
  ConstView h;              // [R, 2F] float32 or bfloat16: gate, then up
  ConstView weights = {};   // [R] float32
  float limit = 0.0f;       // 0: none
  View y;                   // [R, F] as h
  ConstView num_rows = {};  // [1] int64

  KernelCost cost() const { return {.name = "swiglu_forward", .bytes = bytes_of(h, weights, y)}; }
};
struct SwigluBackward {
  ConstView dy;             // [R, F] as h
  ConstView h;              // [R, 2F]
  ConstView weights = {};   // [R] float32
  float limit = 0.0f;       // 0: none
  View dh;                  // [R, 2F] as h; may be h itself
  View dweights = {};       // [R] float32; not defined: none
  ConstView num_rows = {};  // [1] int64

  KernelCost cost() const { return {.name = "swiglu_backward", .bytes = bytes_of(dy, h, weights, dh, dweights)}; }
};
struct SwigluForwardFp8 {
  ConstView h;              // [R, 2F] bfloat16
  ConstView weights = {};   // [R] float32
  float limit = 0.0f;       // 0: none
  View h_codes;             // [R, 2F] float8_e4m3, 1x128: what the backward pass keeps of h; not defined: none
  View h_scale;             // [R, ceil(2F/128)] float32
  View y_codes;             // [R, F] float8_e4m3, 1x128
  View y_scale;             // [R, ceil(F/128)] float32
  QuantizeStats* stats;     // of both; null: none
  ConstView num_rows = {};  // [1] int64

  KernelCost cost() const {
    return {.name = "swiglu_forward_fp8", .bytes = bytes_of(h, weights, h_codes, h_scale, y_codes, y_scale)};
  }
};
struct SwigluBackwardFp8 {
  ConstView dy;                // [R, F] bfloat16
  ConstView h_codes, h_scale;  // as the forward pass left them: h here is codes * scale
  ConstView weights = {};      // [R] float32
  float limit = 0.0f;          // 0: none
  ConstView offsets;           // [G + 1] int64: the groups of rows, as for QuantizeColumns
  ConstView block_offsets;     // [G + 1] int64
  // y is made again from h, in one of two forms: columns, column_codes_shape(P, F) and [P/128, F], or rows, [R, F] and
  // [R, ceil(F/128)]. The other is not defined.
  View y_codes = {}, y_scale = {};
  View y_row_codes = {}, y_row_scale = {};
  View dh_codes, dh_scale;  // [R, 2F] and [R, ceil(2F/128)]: rows of dh
  // column_codes_shape(P, 2F) and [P/128, 2F]; not defined: none.
  View dh_column_codes = {}, dh_column_scale = {};
  View dweights = {};                                   // [R] float32; not defined: none
  QuantizeStats *y_stats, *dh_stats, *dh_column_stats;  // all or none

  KernelCost cost() const {
    return {.name = "swiglu_backward_fp8",
            .bytes = bytes_of(dy, h_codes, h_scale, weights, y_codes, y_scale, y_row_codes, y_row_scale, dh_codes,
                              dh_scale, dh_column_codes, dh_column_scale, dweights)};
  }
};
struct ClampCounts {
  int64_t count = 0;    // numbers of h
  int64_t clamped = 0;  // of them those that the limit changed; a NaN, which it leaves, is none
};
struct CountClamped {
  ConstView h;              // [R, 2F] float32 or bfloat16: gate, then up
  float limit;              // above 0
  ClampCounts* counts;      // added to
  ConstView num_rows = {};  // [1] int64

  KernelCost cost() const { return {.name = "count_clamped", .bytes = bytes_of(h)}; }
};
namespace cpu {
void count_clamped(const CountClamped& args, Stream& stream);
void swiglu_forward_fp8(const SwigluForwardFp8& args, Stream& stream);
void swiglu_backward_fp8(const SwigluBackwardFp8& args, Stream& stream);
void swiglu_forward(const SwigluForward& args, Stream& stream);
void swiglu_backward(const SwigluBackward& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void count_clamped(const CountClamped& args, Stream& stream);
void swiglu_forward_fp8(const SwigluForwardFp8& args, Stream& stream);
void swiglu_backward_fp8(const SwigluBackwardFp8& args, Stream& stream);
void swiglu_forward(const SwigluForward& args, Stream& stream);
void swiglu_backward(const SwigluBackward& args, Stream& stream);
}  // namespace cuda
inline void count_clamped(const CountClamped& args, Stream& stream) {
  dispatch<cpu::count_clamped, cuda::count_clamped>(args, stream);
}
inline void swiglu_forward(const SwigluForward& args, Stream& stream) {
  dispatch<cpu::swiglu_forward, cuda::swiglu_forward>(args, stream);
}
inline void swiglu_backward(const SwigluBackward& args, Stream& stream) {
  dispatch<cpu::swiglu_backward, cuda::swiglu_backward>(args, stream);
}
inline void swiglu_forward_fp8(const SwigluForwardFp8& args, Stream& stream) {
  dispatch<cpu::swiglu_forward_fp8, cuda::swiglu_forward_fp8>(args, stream);
}
inline void swiglu_backward_fp8(const SwigluBackwardFp8& args, Stream& stream) {
  dispatch<cpu::swiglu_backward_fp8, cuda::swiglu_backward_fp8>(args, stream);
}

}  // namespace octet::kernels
