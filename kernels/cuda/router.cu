// A warp for each token. Sums over experts run over the experts of a lane in order and then the tree of a warp; those
// over the chosen experts, and over blocks of tokens, in order.
#include "kernels/router.h"

#include "kernels/cuda/device.cuh"

namespace octet::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;  // tokens to a block
constexpr int kBlockTokens = 32;          // that the balance loss sums first
constexpr float kGuard = 1e-20f;

__device__ __forceinline__ int lane() { return int(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp() { return int(threadIdx.x) / kWarp; }
__device__ __forceinline__ int64_t token() { return int64_t(blockIdx.x) * kWarps + warp(); }
dim3 token_grid(int64_t T) { return blocks(ceil_div<int64_t>(T, kWarps)); }

// A float as an unsigned number of the same order, -0 beside 0 and NaN below everything.
__device__ __forceinline__ uint32_t order_key(float x) {
  if (x != x) return 0;
  const uint32_t u = bit_cast<uint32_t>(x + 0.0f);
  return u >> 31 != 0 ? ~u : u | 0x80000000u;
}
constexpr uint32_t kMaskedKey = 0x007fffffu;  // order_key(-infinity)
// Of number i with this key: greater for a greater key and, among equals, a lower i. Never 0.
__device__ __forceinline__ uint64_t rank_of(uint32_t key, int i) {
  return uint64_t(key) << 32 | (0xffffffffu - uint32_t(i));
}
__device__ __forceinline__ int index_of(uint64_t rank) { return int(0xffffffffu - uint32_t(rank)); }

// Takes the greatest of n ranks, which becomes 0, and returns its index. A warp calls it.
__device__ __forceinline__ int take_largest(const Shared<uint64_t>& ranks, int n) {
  uint64_t top = 0;
  for (int i = lane(); i < n; i += kWarp) {
    const uint64_t rank = ranks[i];
    top = rank > top ? rank : top;
  }
  top = warp_max(top);
  const int index = index_of(top);
  if (index % kWarp == lane()) ranks[index] = 0;
  return index;
}

// p = softmax(x) over n values, each lane its own; log sum exp is largest + log(sum).
struct SoftmaxRow {
  float largest, sum;
};
__device__ __forceinline__ SoftmaxRow softmax_row(const float* x, const Shared<float>& p, int n) {
  float largest = -kInfinity;
  for (int i = lane(); i < n; i += kWarp) largest = x[i] > largest ? x[i] : largest;
  largest = warp_max(largest);
  float sum = 0.0f;
  for (int i = lane(); i < n; i += kWarp) {
    const float e = exp_of(x[i] - largest);
    p[i] = e;
    sum = sum + e;
  }
  sum = warp_sum(sum);
  for (int i = lane(); i < n; i += kWarp) p[i] = p[i] / sum;
  return {largest, sum};
}

constexpr size_t forward_bytes(int64_t E, int64_t G) {
  return size_t(kWarps) * (size_t(E + G) * sizeof(uint64_t) + size_t(E) * 2 * sizeof(float));
}
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const float* logits, const float* bias, const int32_t* replayed, float* scores, int32_t* indices,
                   float* weights, RouterOptions options, int64_t T, int E, int K) {
  const int G = int(options.num_groups), per_group = E / G;
  const int64_t t = token();
  if (t >= T) return;
  const auto ranks = dynamic_shared<uint64_t>(0, kWarps * (E + G)) + warp() * (E + G);
  const auto group_ranks = ranks + E;
  const size_t after = size_t(kWarps) * size_t(E + G) * sizeof(uint64_t);
  const auto s = dynamic_shared<float>(after, kWarps * 2 * E) + warp() * 2 * E;
  const auto choice = s + E;
  if (options.score == ScoreFunction::kSoftmax) {
    softmax_row(logits + t * E, s, E);
  } else {
    for (int i = lane(); i < E; i += kWarp) s[i] = sigmoid_of(logits[t * E + i]);
  }
  for (int i = lane(); i < E; i += kWarp) {
    const float c = bias == nullptr ? float(s[i]) : s[i] + bias[i];
    scores[t * E + i] = s[i];
    choice[i] = c;
    ranks[i] = rank_of(order_key(c), i);
  }
  __syncwarp();
  if (replayed == nullptr && options.kept_groups < G) {
    for (int g = lane(); g < G; g += kWarp) {
      uint64_t best[2] = {0, 0};
      for (int i = g * per_group; i < (g + 1) * per_group; ++i) {
        const uint64_t rank = ranks[i];
        if (rank > best[0]) {
          best[1] = best[0];
          best[0] = rank;
        } else if (rank > best[1]) {
          best[1] = rank;
        }
      }
      float sum = choice[index_of(best[0])];
      if (per_group > 1) sum = sum + choice[index_of(best[1])];
      group_ranks[g] = rank_of(order_key(sum), g);
    }
    __syncwarp();
    for (int kept = 0; kept < options.kept_groups; ++kept) {
      take_largest(group_ranks, G);
      __syncwarp();
    }
    // A group that was taken keeps its experts.
    for (int i = lane(); i < E; i += kWarp) {
      if (group_ranks[i / per_group] != 0) ranks[i] = rank_of(kMaskedKey, i);
    }
    __syncwarp();
  }
  float sum = 0.0f;
  for (int k = 0; k < K; ++k) {
    const int index = replayed == nullptr ? take_largest(ranks, E) : replayed[t * K + k];
    sum = sum + s[index];
    if (lane() == 0) indices[t * K + k] = index;
    __syncwarp();
  }
  // Each lane reads what lane 0 wrote, behind the barrier.
  for (int k = lane(); k < K; k += kWarp) {
    const float score = s[indices[t * K + k]];
    weights[t * K + k] = (options.normalize ? score / (sum + kGuard) : score) * options.scaling;
  }
}

__global__ void __launch_bounds__(kThreads)
    backward_kernel(const float* scores, const int32_t* indices, const float* dweights, const float* dscores,
                    float* dlogits, RouterOptions options, int64_t T, int E, int K) {
  const int64_t t = token();
  if (t >= T) return;
  const auto ds = dynamic_shared<float>(0, kWarps * E) + warp() * E;
  const float* const s = scores + t * E;
  for (int i = lane(); i < E; i += kWarp) ds[i] = dscores == nullptr ? 0.0f : dscores[t * E + i];
  __syncwarp();
  float sum = kGuard, dot = 0.0f;  // dot = sum_k u[k] w[k] / scaling
  if (options.normalize) {
    float chosen = 0.0f;
    for (int k = 0; k < K; ++k) chosen = chosen + s[indices[t * K + k]];
    sum = sum + chosen;
    for (int k = 0; k < K; ++k) dot = dot + dweights[t * K + k] * options.scaling * (s[indices[t * K + k]] / sum);
  }
  for (int k = lane(); k < K; k += kWarp) {  // the experts of a token differ
    const float u = dweights[t * K + k] * options.scaling;
    ds[indices[t * K + k]] += options.normalize ? (u - dot) / sum : u;
  }
  __syncwarp();
  if (options.score == ScoreFunction::kSigmoid) {
    for (int i = lane(); i < E; i += kWarp) dlogits[t * E + i] = ds[i] * s[i] * (1.0f - s[i]);
  } else {
    float along = 0.0f;
    for (int i = lane(); i < E; i += kWarp) along = fmaf(ds[i], s[i], along);
    along = warp_sum(along);
    for (int i = lane(); i < E; i += kWarp) dlogits[t * E + i] = s[i] * (ds[i] - along);
  }
}

// A block of tokens [begin, end) that does not cross a group: block b of group g.
struct TokenBlock {
  int64_t begin, end, group_tokens;
};
__device__ __forceinline__ TokenBlock token_block(int64_t b, int64_t g, int64_t T, int64_t tokens_per_group) {
  const int64_t first = g * tokens_per_group, last = T - first < tokens_per_group ? T : first + tokens_per_group;
  const int64_t begin = first + b * kBlockTokens, end = last - begin < kBlockTokens ? last : begin + kBlockTokens;
  return {begin, end, last - first};
}
__device__ __forceinline__ float sum_of_row(const float* x, int n) {
  float sum = 0.0f;
  for (int i = lane(); i < n; i += kWarp) sum = sum + x[i];
  return warp_sum(sum);
}

// A warp for each block of tokens: shares [G, blocks, E], the sum of s / sum_j s, and how many tokens have each expert
// among their K largest.
__global__ void __launch_bounds__(kWarp) shares_kernel(const float* scores, float* shares, int32_t* chosen, int64_t T,
                                                       int64_t tokens_per_group, int E, int K, bool counts_tokens) {
  const TokenBlock block = token_block(blockIdx.x, blockIdx.y, T, tokens_per_group);
  const auto ranks = dynamic_shared<uint64_t>(0, E);
  const auto share = dynamic_shared<float>(size_t(E) * sizeof(uint64_t), E);
  const auto count = dynamic_shared<int32_t>(size_t(E) * (sizeof(uint64_t) + sizeof(float)), E);
  for (int i = lane(); i < E; i += kWarp) share[i] = 0.0f, count[i] = 0;
  for (int64_t t = block.begin; t < block.end; ++t) {
    const float* const s = scores + t * E;
    const float sum = sum_of_row(s, E);
    for (int i = lane(); i < E; i += kWarp) {
      if (sum != 0.0f) share[i] += s[i] / sum;
      ranks[i] = rank_of(order_key(s[i]), i);
    }
    for (int k = 0; counts_tokens && k < K; ++k) {  // a lane takes and counts only what is its own
      const int index = take_largest(ranks, E);
      if (index % kWarp == lane()) count[index] += 1;
    }
  }
  const int64_t at = (int64_t(blockIdx.y) * gridDim.x + blockIdx.x) * E;
  for (int i = lane(); i < E; i += kWarp) shares[at + i] = share[i], chosen[at + i] = count[i];
}

// A block for each group: f [G, E], and the group's part of the loss.
__global__ void __launch_bounds__(kThreads)
    groups_kernel(const float* shares, const int32_t* chosen, const float* load, float* f, float* group_loss, int64_t T,
                  int64_t tokens_per_group, int64_t group_blocks, int E, int K) {
  const int64_t g = blockIdx.x;
  const float tokens = float(token_block(0, g, T, tokens_per_group).group_tokens);
  float sum = 0.0f;
  for (int i = int(threadIdx.x); i < E; i += kThreads) {
    float share = 0.0f;
    int64_t count = 0;
    for (int64_t b = 0; b < group_blocks; ++b) {
      share = share + shares[(g * group_blocks + b) * E + i];
      count += chosen[(g * group_blocks + b) * E + i];
    }
    const float fi = load == nullptr ? float(E) / (float(K) * tokens) * float(count) : float(E) * load[i];
    f[g * E + i] = fi;
    sum = sum + fi * (share / tokens);
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) group_loss[g] = sum;
}
__global__ void __launch_bounds__(kWarp)
    balance_total_kernel(const float* group_loss, float* loss, int64_t G, float alpha) {
  if (threadIdx.x != 0) return;
  float total = 0.0f;
  for (int64_t g = 0; g < G; ++g) total = total + group_loss[g];
  *loss = *loss + alpha * (total / float(G));
}

// d loss / d s[t,i] = alpha / (G T_g) * (f[i] - sum_j f[j] p[t,j]) / sum_j s[t,j],  p = s / sum_j s
__global__ void __launch_bounds__(kThreads)
    balance_gradient_kernel(const float* scores, const float* f, float* dscores, int64_t T, int64_t tokens_per_group,
                            int64_t G, int E, float alpha) {
  const int64_t t = token();
  if (t >= T) return;
  const int64_t g = t / tokens_per_group;
  const float tokens = float(token_block(0, g, T, tokens_per_group).group_tokens);
  const float *const s = scores + t * E, *const fg = f + g * E;
  const float sum = sum_of_row(s, E);
  if (sum == 0.0f) return;
  float along = 0.0f;
  for (int i = lane(); i < E; i += kWarp) along = fmaf(fg[i], s[i], along);
  const float mean = warp_sum(along) / sum, factor = alpha / (float(G) * tokens);
  for (int i = lane(); i < E; i += kWarp) {
    dscores[t * E + i] = fmaf(factor / sum, fg[i] - mean, dscores[t * E + i]);
  }
}

__global__ void __launch_bounds__(kThreads)
    z_loss_kernel(const float* logits, float* dlogits, float* squares, float beta, int64_t T, int E) {
  const int64_t t = token();
  if (t >= T) return;
  const auto p = dynamic_shared<float>(0, kWarps * E) + warp() * E;
  const SoftmaxRow row = softmax_row(logits + t * E, p, E);
  const float lse = row.largest + log_of(row.sum);
  if (lane() == 0) squares[t] = lse * lse;
  const float factor = 2.0f * beta * lse / float(T);
  for (int i = lane(); i < E; i += kWarp) dlogits[t * E + i] = fmaf(factor, p[i], dlogits[t * E + i]);
}
__global__ void __launch_bounds__(kThreads) z_total_kernel(const float* squares, float* loss, float beta, int64_t T) {
  float sum = 0.0f;
  for (int64_t t = threadIdx.x; t < T; t += kThreads) sum = sum + squares[t];
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) *loss = *loss + beta * (sum / float(T));
}

}  // namespace

void router_forward(const RouterForward& args, Stream& stream) {
  const int64_t T = args.logits.rows(), E = args.logits.cols();
  launch("router_forward", token_grid(T), kThreads, forward_bytes(E, args.options.num_groups), stream, forward_kernel,
         args.logits.data<float>(), args.bias.data<float>(), args.replayed.data<int32_t>(), args.scores.data<float>(),
         args.indices.data<int32_t>(), args.weights.data<float>(), args.options, T, int(E), int(args.indices.cols()));
}

void router_backward(const RouterBackward& args, Stream& stream) {
  const int64_t T = args.scores.rows(), E = args.scores.cols();
  launch("router_backward", token_grid(T), kThreads, size_t(kWarps * E) * sizeof(float), stream, backward_kernel,
         args.scores.data<float>(), args.indices.data<int32_t>(), args.dweights.data<float>(),
         args.dscores.data<float>(), args.dlogits.data<float>(), args.options, T, int(E), int(args.indices.cols()));
}

void balance_loss(const BalanceLoss& args, Stream& stream) {
  const int64_t T = args.scores.rows(), E = args.scores.cols(), K = args.top_k;
  if (T == 0) return;
  const int64_t group_tokens = args.tokens_per_group < T ? args.tokens_per_group : T;
  const int64_t G = ceil_div(T, group_tokens), group_blocks = ceil_div<int64_t>(group_tokens, kBlockTokens);
  Workspace<float> shares("balance_loss", G * group_blocks * E, stream), f("balance_loss", G * E, stream);
  Workspace<int32_t> chosen("balance_loss", G * group_blocks * E, stream);
  Workspace<float> group_loss("balance_loss", G, stream);
  const float* const load = args.load.data<float>();
  launch("balance_loss, shares", blocks(group_blocks, G), kWarp,
         size_t(E) * (sizeof(uint64_t) + sizeof(float) + sizeof(int32_t)), stream, shares_kernel,
         args.scores.data<float>(), shares.data(), chosen.data(), T, group_tokens, int(E), int(K), load == nullptr);
  launch("balance_loss, groups", blocks(G), kThreads, 0, stream, groups_kernel, shares.data(), chosen.data(), load,
         f.data(), group_loss.data(), T, group_tokens, group_blocks, int(E), int(K));
  launch("balance_loss, total", blocks(1), kWarp, 0, stream, balance_total_kernel, group_loss.data(),
         args.loss.data<float>(), G, args.alpha);
  launch("balance_loss, gradient", token_grid(T), kThreads, 0, stream, balance_gradient_kernel,
         args.scores.data<float>(), f.data(), args.dscores.data<float>(), T, group_tokens, G, int(E), args.alpha);
}

void router_z_loss(const RouterZLoss& args, Stream& stream) {
  const int64_t T = args.logits.rows(), E = args.logits.cols();
  if (T == 0) return;
  Workspace<float> squares("router_z_loss", T, stream);
  launch("router_z_loss", token_grid(T), kThreads, size_t(kWarps * E) * sizeof(float), stream, z_loss_kernel,
         args.logits.data<float>(), args.dlogits.data<float>(), squares.data(), args.beta, T, int(E));
  launch("router_z_loss, total", blocks(1), kThreads, 0, stream, z_total_kernel, squares.data(),
         args.loss.data<float>(), args.beta, T);
}

}  // namespace octet::kernels::cuda
