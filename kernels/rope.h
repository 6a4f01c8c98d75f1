// Rotary position embedding (arXiv:2104.09864), in place on each head of each token.
//   angle = positions[t] * theta^(-2i/head_dim)         for pair i of a head, i in [0, head_dim/2)
//   (a, b) -> (a cos - b sin, a sin + b cos)
// Pair i is (x[i], x[i + head_dim/2]) in the half layout (GPT-NeoX, Llama in its Hugging Face form) and
// (x[2i], x[2i+1]) in the interleaved one (the paper's own, DeepSeek). The inverse turns back by the same angle: it is
// the backward pass.
// The products and sums are float32. The table holds cos and sin, rounded to float32 from float64.
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

enum class RopeLayout { kHalf, kInterleaved };

struct Rope {
  View x;               // [T, H * head_dim] float32 or bfloat16, rows may be strided
  ConstView positions;  // [T] int32, each in [0, rows of cos_sin)
  ConstView cos_sin;    // [max_positions, head_dim] float32: cos of pair i at 2i, sin at 2i + 1
  int64_t head_dim;     // even
  RopeLayout layout;
  bool inverse;

  KernelCost cost() const { return {.name = "rope", .bytes = bytes_of(x, x, positions)}; }
};
// Fills cos_sin, [max_positions, head_dim] float32, for Rope: angles in float64, their cos and sin rounded once.
void fill_rope_table(View cos_sin, int64_t head_dim, double theta);
namespace cpu {
void rope(const Rope& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void rope(const Rope& args, Stream& stream);
}  // namespace cuda
inline void rope(const Rope& args, Stream& stream) { dispatch<cpu::rope, cuda::rope>(args, stream); }

}  // namespace octet::kernels
