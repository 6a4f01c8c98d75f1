// Rotary embedding and causal attention over a fused query-key-value matrix (kernels/rope.h, kernels/attention.h).
#pragma once

#include "core/autograd/tape.h"
#include "kernels/rope.h"

namespace octet {

struct AttentionShape {
  int64_t num_heads = 1, num_kv_heads = 1, head_dim = 64;
  int64_t q_width() const { return num_heads * head_dim; }
  int64_t kv_width() const { return num_kv_heads * head_dim; }
  int64_t qkv_width() const { return q_width() + 2 * kv_width(); }
};

struct Rotary {
  Tensor cos_sin;  // [max_positions, head_dim] float32
  kernels::RopeLayout layout = kernels::RopeLayout::kHalf;
};

// qkv: [batch * S, (H + 2 Hkv) * head_dim]: queries, keys, values; turned in place, so no other op may read it after.
// Returns o: [batch * S, H * head_dim] as qkv.
Tensor attention(const Tensor& qkv, int64_t batch, const AttentionShape& shape, const Rotary& rotary);

// The keys and values of one sequence, for generation.
struct KvCache {
  Tensor k, v;         // [capacity, Hkv * head_dim]
  int64_t length = 0;  // positions filled
};
// qkv: [N, (H + 2 Hkv) * head_dim], the tokens after cache.length; they are appended to the cache. Gives the bits that
// attention() gives for these tokens. Not recorded.
Tensor attention_decode(const Tensor& qkv, KvCache& cache, const AttentionShape& shape, const Rotary& rotary);

}  // namespace octet
