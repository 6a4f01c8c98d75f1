// The gated activation of a feed-forward layer (arXiv:2002.05202).
//   y[r,f] = silu(h[r,f]) * h[r,F+f],  silu(g) = g / (1 + exp(-g))
//   dh[r,f] = dy * up * s * (1 + g (1 - s)),  dh[r,F+f] = dy * silu(g),  s = 1 / (1 + exp(-g))
// Arithmetic is float32. R may be 0.
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

struct SwigluForward {
  ConstView h;  // [R, 2F] float32 or bfloat16: gate, then up
  View y;       // [R, F] as h

  KernelCost cost() const { return {.name = "swiglu_forward", .bytes = bytes_of(h, y)}; }
};
struct SwigluBackward {
  ConstView dy;  // [R, F] as h
  ConstView h;   // [R, 2F]
  View dh;       // [R, 2F] as h; may be h itself

  KernelCost cost() const { return {.name = "swiglu_backward", .bytes = bytes_of(dy, h, dh)}; }
};
namespace cpu {
void swiglu_forward(const SwigluForward& args, Stream& stream);
void swiglu_backward(const SwigluBackward& args, Stream& stream);
}  // namespace cpu
inline void swiglu_forward(const SwigluForward& args, Stream& stream) { dispatch<cpu::swiglu_forward>(args, stream); }
inline void swiglu_backward(const SwigluBackward& args, Stream& stream) {
  dispatch<cpu::swiglu_backward>(args, stream);
}

}  // namespace octet::kernels
