#include "core/ops/attention.h"

#include <array>
#include <cmath>
#include <map>
#include <numeric>

#include "core/tensor/transfer.h"
#include "kernels/attention.h"

namespace octet {
namespace {

struct Slices {
  Tensor q, k, v;
};
Slices split(const Tensor& qkv, const AttentionShape& shape) {
  return {.q = qkv.slice_columns(0, shape.q_width()),
          .k = qkv.slice_columns(shape.q_width(), shape.kv_width()),
          .v = qkv.slice_columns(shape.q_width() + shape.kv_width(), shape.kv_width())};
}

// Turns queries and keys by their positions, or back. They lie side by side and turn as one.
void rotate(const Tensor& qkv, const Tensor& positions, const AttentionShape& shape, const Rotary& rotary,
            bool inverse) {
  kernels::rope({.x = qkv.slice_columns(0, shape.q_width() + shape.kv_width()),
                 .positions = positions,
                 .cos_sin = rotary.cos_sin,
                 .head_dim = shape.head_dim,
                 .layout = rotary.layout,
                 .inverse = inverse},
                qkv.stream());
}

Tensor positions_from(int64_t first, int64_t count, int64_t repeats, Device device) {
  std::vector<int32_t> positions(size_t(repeats * count));
  for (int64_t b = 0; b < repeats; ++b) {
    std::iota(positions.begin() + b * count, positions.begin() + (b + 1) * count, int32_t(first));
  }
  return from_vector(positions, {repeats * count}, device);
}

// Of whole sequences. Made once for each form of a batch and kept, since a captured step reads them ever after.
Tensor positions_of(int64_t length, int64_t batch, Device device) {
  static thread_local std::map<std::array<int64_t, 3>, Tensor> made;
  const std::array<int64_t, 3> key{device.is_cpu() ? -1 : device.index, length, batch};
  const auto found = made.find(key);
  if (found != made.end()) return found->second;
  const AllocateAs workspace(MemoryCategory::kWorkspace);
  return made[key] = positions_from(0, length, batch, device);
}

float softmax_scale(const AttentionShape& shape) { return 1.0f / std::sqrt(float(shape.head_dim)); }

}  // namespace

Tensor attention(const Tensor& qkv, int64_t batch, const AttentionShape& shape, const Rotary& rotary) {
  const int64_t T = qkv.rows();
  require(qkv.cols() == shape.qkv_width() && batch >= 1 && T % batch == 0,
          "attention: qkv is {} for {} sequences; wanted [batch * S, {}]", qkv.shape(), batch, shape.qkv_width());
  const int64_t S = T / batch;
  require(S <= rotary.cos_sin.size(0), "attention: {} positions; the rotary table has {}", S, rotary.cos_sin.size(0));
  const Tensor positions = positions_of(S, batch, qkv.device());
  rotate(qkv, positions, shape, rotary, /*inverse=*/false);
  const Tensor turned = qkv.detach();
  const Slices in = split(turned, shape);
  Tensor o = empty({T, shape.q_width()}, qkv.dtype(), qkv.device());
  const Tensor lse = empty({T, shape.num_heads}, DType::kFloat32, qkv.device());
  const float scale = softmax_scale(shape);
  kernels::attention_forward({.q = in.q,
                              .k = in.k,
                              .v = in.v,
                              .o = o,
                              .lse = lse,
                              .batch = batch,
                              .num_heads = shape.num_heads,
                              .num_kv_heads = shape.num_kv_heads,
                              .scale = scale},
                             o.stream());
  return record("attention", o, {qkv},
                [turned, o, lse, positions, batch, shape, rotary, scale](const Tensor& grad_o) -> Gradients {
                  const Slices saved = split(turned, shape);
                  Tensor dqkv = empty_like(turned);
                  const Slices d = split(dqkv, shape);
                  kernels::attention_backward({.grad_o = grad_o,
                                               .q = saved.q,
                                               .k = saved.k,
                                               .v = saved.v,
                                               .o = o,
                                               .lse = lse,
                                               .dq = d.q,
                                               .dk = d.k,
                                               .dv = d.v,
                                               .batch = batch,
                                               .num_heads = shape.num_heads,
                                               .num_kv_heads = shape.num_kv_heads,
                                               .scale = scale},
                                              dqkv.stream());
                  rotate(dqkv, positions, shape, rotary, /*inverse=*/true);
                  return {dqkv};
                });
}

Tensor attention_decode(const Tensor& qkv, KvCache& cache, const AttentionShape& shape, const Rotary& rotary) {
  const int64_t N = qkv.rows();
  require(cache.length + N <= cache.k.size(0), "attention_decode: {} tokens after {}; the cache holds {}", N,
          cache.length, cache.k.size(0));
  rotate(qkv, positions_from(cache.length, N, 1, qkv.device()), shape, rotary, /*inverse=*/false);
  const Slices in = split(qkv, shape);
  copy(in.k, cache.k.slice_rows(cache.length, N));
  copy(in.v, cache.v.slice_rows(cache.length, N));
  cache.length += N;
  Tensor o = empty({N, shape.q_width()}, qkv.dtype(), qkv.device());
  kernels::attention_decode({.q = in.q,
                             .k_cache = cache.k,
                             .v_cache = cache.v,
                             .o = o,
                             .length = cache.length,
                             .num_heads = shape.num_heads,
                             .num_kv_heads = shape.num_kv_heads,
                             .scale = softmax_scale(shape)},
                            o.stream());
  return o;
}

}  // namespace octet
