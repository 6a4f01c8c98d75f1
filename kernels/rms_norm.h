// Scales each row to unit root mean square (arXiv:1910.07467).
//   rstd[t] = 1 / sqrt(mean_d(x[t,d]^2) + eps)        y[t,d] = x[t,d] * rstd[t] * weight[d]
//   dx[t,d] = rstd[t] * (g[d] - x[t,d] * rstd[t]^2 * mean_d(g[d] * x[t,d])),  g[d] = dy[t,d] * weight[d]
//   dweight[d] += sum_t dy[t,d] * x[t,d] * rstd[t]
// Sums are float32 for every storage type, over 16 lanes and then a tree; dweight adds tokens in blocks of
// kRmsNormTokenBlock, in order. T may be 0: an expert that received no token is a normal case.
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"
#include "kernels/quantize.h"

namespace octet::kernels {

inline constexpr int64_t kRmsNormTokenBlock = 64;

struct RmsNormForward {
  ConstView x;       // [T, D] float32 or bfloat16
  ConstView weight;  // [D]    float32
  View y;            // [T, D] as x; may be x itself
  View rstd;         // [T]    float32, kept for the backward pass
  float eps;

  KernelCost cost() const { return {.name = "rms_norm_forward", .bytes = bytes_of(x, weight, y, rstd)}; }
};
struct RmsNormForwardFp8 {
  // The same y, rounded to bfloat16, and what QuantizeRows makes of it (kernels/quantize.h), in one pass.
  ConstView x;           // [T, D] bfloat16
  ConstView weight;      // [D]    float32
  View y;                // [T, D] bfloat16; not defined: nobody reads it
  View codes;            // [T, D] float8_e4m3
  View scale;            // [T, ceil(D/128)] float32
  View rstd;             // [T]    float32
  QuantizeStats* stats;  // added to; null: none
  float eps;

  KernelCost cost() const {
    return {.name = "rms_norm_forward_fp8", .bytes = bytes_of(x, weight, y, codes, scale, rstd)};
  }
};
struct RmsNormBackward {
  ConstView dy;      // [T, D] as x
  ConstView x;       // [T, D] float32 or bfloat16
  ConstView weight;  // [D]    float32
  ConstView rstd;    // [T]    float32
  View dx;           // [T, D] as x; may be dy itself
  View dweight;      // [D]    float32, added to

  KernelCost cost() const { return {.name = "rms_norm_backward", .bytes = bytes_of(dy, x, weight, rstd, dx, dweight)}; }
};
namespace cpu {
void rms_norm_forward(const RmsNormForward& args, Stream& stream);
void rms_norm_forward_fp8(const RmsNormForwardFp8& args, Stream& stream);
void rms_norm_backward(const RmsNormBackward& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void rms_norm_forward(const RmsNormForward& args, Stream& stream);
void rms_norm_forward_fp8(const RmsNormForwardFp8& args, Stream& stream);
void rms_norm_backward(const RmsNormBackward& args, Stream& stream);
}  // namespace cuda
inline void rms_norm_forward(const RmsNormForward& args, Stream& stream) {
  dispatch<cpu::rms_norm_forward, cuda::rms_norm_forward>(args, stream);
}
inline void rms_norm_forward_fp8(const RmsNormForwardFp8& args, Stream& stream) {
  dispatch<cpu::rms_norm_forward_fp8, cuda::rms_norm_forward_fp8>(args, stream);
}
inline void rms_norm_backward(const RmsNormBackward& args, Stream& stream) {
  dispatch<cpu::rms_norm_backward, cuda::rms_norm_backward>(args, stream);
}

}  // namespace octet::kernels
