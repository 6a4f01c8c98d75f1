// Causal attention with grouped key-value heads, without ever storing the score matrix (arXiv:2205.14135).
//   for each sequence b, head h with key-value head h / (H / Hkv), and position i:
//   lse[i] = log sum_j exp(scale * q[i] . k[j]), j <= i;   p[i,j] = exp(scale * q[i] . k[j] - lse[i])
//   o[i] = sum_j p[i,j] v[j]
// Backward:  ds[i,j] = p[i,j] (do[i] . v[j] - do[i] . o[i]);  dq = scale ds k;  dk = scale ds^T q;  dv = p^T do
// q . k, softmax and all sums are float32; dk and dv add the query heads of a group and the query blocks in order.
// T = batch * S; a token's row holds its heads side by side. B or S may be 0.
// For bfloat16 with heads of at most kWidestRoundedHead columns p and ds are rounded to bfloat16 where they are
// factors, and subnormals are taken as zero. A GPU has its tensor cores' own bits there, and an infinity or NaN in v
// reaches the queries of its block of 64 positions that lie before it; otherwise it has the CPU's bits.
#pragma once

#include <algorithm>

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

inline constexpr int64_t kWidestRoundedHead = 192;  // what a GPU's registers and shared memory hold

// Of `products` products between the rows of x, [T, heads * width], and the positions up to each row's own.
inline double causal_flops(int64_t batch, const ConstView& x, double products) {
  const double positions = batch == 0 ? 0 : double(x.rows() / batch);
  return products * double(x.num_elements()) * (positions + 1);
}

// Whether p and ds are rounded, q and o being as below.
inline bool rounds_factors(const ConstView& q, const ConstView& o, int64_t num_heads) {
  return q.dtype() == DType::kBFloat16 && std::max(q.cols(), o.cols()) <= kWidestRoundedHead * num_heads;
}
inline KernelCost attention_cost(const char* name, const ConstView& q, const ConstView& o, int64_t num_heads,
                                 double flops, double bytes) {
  if (rounds_factors(q, o, num_heads)) return {.name = name, .bytes = bytes, .pair_flops = flops};
  return {.name = name, .bytes = bytes, .float_flops = flops};
}

struct AttentionForward {
  ConstView q;  // [T, H * head_dim] float32 or bfloat16, rows may be strided (a slice of a fused projection)
  ConstView k;  // [T, Hkv * head_dim] as q, strided
  ConstView v;  // [T, Hkv * value_dim] as q, strided
  View o;       // [T, H * value_dim] as q
  View lse;     // [T, H] float32, kept for the backward pass
  int64_t batch, num_heads, num_kv_heads;
  float scale;  // usually 1 / sqrt(head_dim)

  KernelCost cost() const {
    return attention_cost("attention_forward", q, o, num_heads, causal_flops(batch, q, 1) + causal_flops(batch, o, 1),
                          bytes_of(q, k, v, o, lse));
  }
};
struct AttentionBackward {
  ConstView grad_o;      // [T, H * value_dim]
  ConstView q, k, v, o;  // as in the forward pass
  ConstView lse;         // [T, H] float32
  View dq, dk, dv;       // shapes of q, k, v; rows may be strided
  int64_t batch, num_heads, num_kv_heads;
  float scale;

  KernelCost cost() const {
    return attention_cost("attention_backward", q, o, num_heads, causal_flops(batch, q, 3) + causal_flops(batch, o, 2),
                          bytes_of(grad_o, q, k, v, o, lse, dq, dk, dv));
  }
};
struct AttentionDecode {
  ConstView q;        // [N, H * head_dim] float32 or bfloat16: the newest N tokens of one sequence, N >= 1
  ConstView k_cache;  // [capacity, Hkv * head_dim] as q: the keys of positions 0 .. length - 1, the newest N included
  ConstView v_cache;  // [capacity, Hkv * value_dim] as q
  View o;             // [N, H * value_dim] as q; token n attends to positions 0 .. length - N + n
  int64_t length, num_heads, num_kv_heads;
  float scale;  // the same bits as AttentionForward gives for the same tokens

  KernelCost cost() const {
    return {.name = "attention_decode",
            .bytes = bytes_of(q, o) +
                     double(length) * double(k_cache.cols() + v_cache.cols()) * double(size_of(k_cache.dtype()))};
  }
};
namespace cpu {
void attention_forward(const AttentionForward& args, Stream& stream);
void attention_backward(const AttentionBackward& args, Stream& stream);
void attention_decode(const AttentionDecode& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void attention_forward(const AttentionForward& args, Stream& stream);
void attention_backward(const AttentionBackward& args, Stream& stream);
void attention_decode(const AttentionDecode& args, Stream& stream);
}  // namespace cuda
inline void attention_forward(const AttentionForward& args, Stream& stream) {
  dispatch<cpu::attention_forward, cuda::attention_forward>(args, stream);
}
inline void attention_backward(const AttentionBackward& args, Stream& stream) {
  dispatch<cpu::attention_backward, cuda::attention_backward>(args, stream);
}
inline void attention_decode(const AttentionDecode& args, Stream& stream) {
  dispatch<cpu::attention_decode, cuda::attention_decode>(args, stream);
}

}  // namespace octet::kernels
