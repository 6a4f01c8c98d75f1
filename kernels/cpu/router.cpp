#include "kernels/router.h"

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"

constexpr int64_t kRouterTokens = 32;  // tokens that one thread takes at a time; the balance loss sums them first
constexpr float kRouterGuard = 1e-20f;

// A float as an integer of the same order, -0 beside 0 and NaN below everything.
OCTET_INLINE int32_t order_key(float x) {
  if (x != x) return std::numeric_limits<int32_t>::min();
  const int32_t u = std::bit_cast<int32_t>(x + 0.0f);
  return u < 0 ? u ^ 0x7fffffff : u;
}
constexpr int32_t kMaskedKey = int32_t(0x80000000u) + 0x7fffff;  // order_key(-infinity)

// The `wanted` largest of keys[0..n), largest first, ties to the lower index.
static void largest(const int32_t* keys, int64_t n, int64_t wanted, int32_t* indices) {
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t key = keys[i];
    if (found == wanted && key <= keys[indices[wanted - 1]]) continue;
    int64_t at = found < wanted ? found++ : wanted - 1;
    for (; at > 0 && keys[indices[at - 1]] < key; --at) indices[at] = indices[at - 1];
    indices[at] = int32_t(i);
  }
}

// p = softmax(x) over n values. log sum exp is largest + log(sum).
struct SoftmaxRow {
  float largest, sum;
};
static SoftmaxRow softmax_row(const float* x, float* p, int64_t n) {
  float largest_logit = x[0];
  for (int64_t i = 1; i < n; ++i) largest_logit = x[i] > largest_logit ? x[i] : largest_logit;
  for_lanes(n, [=](int64_t i, auto lanes) { lanes.store(p + i, exp(lanes.load(x + i) - splat(largest_logit))); });
  f32x16 sums = splat(0.0f);
  for_lanes(n, [&](int64_t i, auto lanes) { sums += lanes.load(p + i); });
  const float sum = reduce_add(sums);
  for_lanes(n, [=](int64_t i, auto lanes) { lanes.store(p + i, lanes.load(p + i) / splat(sum)); });
  return {largest_logit, sum};
}

void router_forward(const RouterForward& args, Stream& stream) {
  const int64_t E = args.logits.cols(), K = args.indices.cols();
  const RouterOptions& options = args.options;
  const int64_t G = options.num_groups, per_group = E / G;
  const float* bias = args.bias.is_defined() ? args.bias.data<float>() : nullptr;
  stream.parallel_chunks(args.logits.rows(), kRouterTokens, [&](int64_t first, int64_t last) {
    std::vector<float> choice(static_cast<size_t>(E));
    std::vector<int32_t> keys(static_cast<size_t>(E)), group_keys(static_cast<size_t>(G)),
        group_order(static_cast<size_t>(G));
    for (int64_t t = first; t < last; ++t) {
      const float* logits = args.logits.row<float>(t);
      float* scores = args.scores.row<float>(t);
      int32_t* indices = args.indices.row<int32_t>(t);
      float* weights = args.weights.row<float>(t);
      if (options.score == ScoreFunction::kSoftmax) {
        softmax_row(logits, scores, E);
      } else {
        for_lanes(E, [=](int64_t i, auto lanes) { lanes.store(scores + i, sigmoid(lanes.load(logits + i))); });
      }
      if (args.replayed.is_defined()) {
        std::copy_n(args.replayed.row<int32_t>(t), K, indices);
      } else {
        for (int64_t i = 0; i < E; ++i) {
          choice[size_t(i)] = bias == nullptr ? scores[i] : scores[i] + bias[i];
          keys[size_t(i)] = order_key(choice[size_t(i)]);
        }
        if (options.kept_groups < G) {
          for (int64_t g = 0; g < G; ++g) {
            int32_t best[2];
            largest(keys.data() + g * per_group, per_group, std::min<int64_t>(2, per_group), best);
            float sum = choice[size_t(g * per_group + best[0])];
            if (per_group > 1) sum += choice[size_t(g * per_group + best[1])];
            group_keys[size_t(g)] = order_key(sum);
          }
          largest(group_keys.data(), G, G, group_order.data());
          for (int64_t rank = options.kept_groups; rank < G; ++rank) {
            std::fill_n(keys.begin() + group_order[size_t(rank)] * per_group, per_group, kMaskedKey);
          }
        }
        largest(keys.data(), E, K, indices);
      }
      float sum = 0.0f;
      for (int64_t k = 0; k < K; ++k) sum += scores[indices[k]];
      for (int64_t k = 0; k < K; ++k) {
        const float s = scores[indices[k]];
        weights[k] = (options.normalize ? s / (sum + kRouterGuard) : s) * options.scaling;
      }
    }
  });
}

void router_backward(const RouterBackward& args, Stream& stream) {
  const int64_t E = args.scores.cols(), K = args.indices.cols();
  const RouterOptions& options = args.options;
  stream.parallel_chunks(args.scores.rows(), kRouterTokens, [&](int64_t first, int64_t last) {
    std::vector<float> ds(static_cast<size_t>(E));
    for (int64_t t = first; t < last; ++t) {
      const float* s = args.scores.row<float>(t);
      const int32_t* indices = args.indices.row<int32_t>(t);
      const float* dweights = args.dweights.row<float>(t);
      float* dlogits = args.dlogits.row<float>(t);
      if (args.dscores.is_defined()) {
        std::copy_n(args.dscores.row<float>(t), E, ds.data());
      } else {
        std::fill(ds.begin(), ds.end(), 0.0f);
      }
      float sum = kRouterGuard, dot = 0.0f;  // dot = sum_k u[k] w[k] / scaling
      if (options.normalize) {
        float chosen = 0.0f;
        for (int64_t k = 0; k < K; ++k) chosen += s[indices[k]];
        sum += chosen;
        for (int64_t k = 0; k < K; ++k) dot += dweights[k] * options.scaling * (s[indices[k]] / sum);
      }
      for (int64_t k = 0; k < K; ++k) {
        const float u = dweights[k] * options.scaling;
        ds[size_t(indices[k])] += options.normalize ? (u - dot) / sum : u;
      }
      if (options.score == ScoreFunction::kSigmoid) {
        for_lanes(E, [&](int64_t i, auto lanes) {
          const f32x16 si = lanes.load(s + i);
          lanes.store(dlogits + i, lanes.load(ds.data() + i) * si * (splat(1.0f) - si));
        });
      } else {
        f32x16 along = splat(0.0f);
        for_lanes(E, [&](int64_t i, auto lanes) { along = fma(lanes.load(ds.data() + i), lanes.load(s + i), along); });
        const float mean = reduce_add(along);
        for_lanes(E, [&](int64_t i, auto lanes) {
          lanes.store(dlogits + i, lanes.load(s + i) * (lanes.load(ds.data() + i) - splat(mean)));
        });
      }
    }
  });
}

static float sum_of(const float* x, int64_t n) {
  f32x16 sums = splat(0.0f);
  for_lanes(n, [&](int64_t i, auto lanes) { sums += lanes.load(x + i); });
  return reduce_add(sums);
}

void balance_loss(const BalanceLoss& args, Stream& stream) {
  const int64_t T = args.scores.rows(), E = args.scores.cols(), K = args.top_k;
  if (T == 0) return;
  // Blocks of tokens that do not cross a group: [begin, end) and the group.
  struct Block {
    int64_t begin, end, group;
  };
  std::vector<Block> blocks;
  for (int64_t group = 0, begin = 0; begin < T; ++group, begin += args.tokens_per_group) {
    const int64_t end = std::min(T, begin + args.tokens_per_group);
    for (int64_t at = begin; at < end; at += kRouterTokens) {
      blocks.push_back({at, std::min(end, at + kRouterTokens), group});
    }
  }
  const int64_t G = blocks.back().group + 1, B = int64_t(blocks.size());
  const auto group_tokens = [&](int64_t g) {
    return float(std::min(T, (g + 1) * args.tokens_per_group) - g * args.tokens_per_group);
  };
  const bool counts_tokens = !args.load.is_defined();
  std::vector<float> shares(static_cast<size_t>(B * E), 0.0f);  // [B, E], sum over tokens of s / sum_j s
  std::vector<int32_t> chosen(static_cast<size_t>(counts_tokens ? B * E : 0), 0);
  stream.parallel_for(B, [&](int64_t b) {
    std::vector<int32_t> keys(static_cast<size_t>(E)), indices(static_cast<size_t>(K));
    float* share = shares.data() + b * E;
    for (int64_t t = blocks[size_t(b)].begin; t < blocks[size_t(b)].end; ++t) {
      const float* s = args.scores.row<float>(t);
      const float sum = sum_of(s, E);
      if (sum != 0.0f) {
        for_lanes(E, [=](int64_t i, auto lanes) {
          lanes.store(share + i, lanes.load(share + i) + lanes.load(s + i) / splat(sum));
        });
      }
      if (!counts_tokens) continue;
      for (int64_t i = 0; i < E; ++i) keys[size_t(i)] = order_key(s[i]);
      largest(keys.data(), E, K, indices.data());
      for (const int32_t i : indices) ++chosen[size_t(b * E + i)];
    }
  });
  std::vector<float> f(static_cast<size_t>(G * E)), P(static_cast<size_t>(G * E), 0.0f);
  std::vector<int64_t> count(static_cast<size_t>(G * E), 0);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t i = 0; i < E; ++i) {
      const size_t at = size_t(blocks[size_t(b)].group * E + i);
      P[at] += shares[size_t(b * E + i)];
      if (counts_tokens) count[at] += chosen[size_t(b * E + i)];
    }
  }
  float total = 0.0f;
  for (int64_t g = 0; g < G; ++g) {
    const float tokens = group_tokens(g);
    float sum = 0.0f;
    for (int64_t i = 0; i < E; ++i) {
      const size_t at = size_t(g * E + i);
      f[at] = counts_tokens ? float(E) / (float(K) * tokens) * float(count[at]) : float(E) * args.load.data<float>()[i];
      sum += f[at] * (P[at] / tokens);
    }
    total += sum;
  }
  *args.loss.data<float>() += args.alpha * (total / float(G));
  // d loss / d s[t,i] = alpha / (G T_g) * (f[i] - sum_j f[j] p[t,j]) / sum_j s[t,j],  p = s / sum_j s
  stream.parallel_for(B, [&](int64_t b) {
    const int64_t g = blocks[size_t(b)].group;
    const float* fg = f.data() + g * E;
    const float factor = args.alpha / (float(G) * group_tokens(g));
    for (int64_t t = blocks[size_t(b)].begin; t < blocks[size_t(b)].end; ++t) {
      const float* s = args.scores.row<float>(t);
      float* ds = args.dscores.row<float>(t);
      const float sum = sum_of(s, E);
      if (sum == 0.0f) continue;
      f32x16 along = splat(0.0f);
      for_lanes(E, [&](int64_t i, auto lanes) { along = fma(lanes.load(fg + i), lanes.load(s + i), along); });
      const float mean = reduce_add(along) / sum;
      for_lanes(E, [=](int64_t i, auto lanes) {
        lanes.store(ds + i, fma(splat(factor / sum), lanes.load(fg + i) - splat(mean), lanes.load(ds + i)));
      });
    }
  });
}

void router_z_loss(const RouterZLoss& args, Stream& stream) {
  const int64_t T = args.logits.rows(), E = args.logits.cols();
  if (T == 0) return;
  std::vector<float> squares(static_cast<size_t>(T));
  stream.parallel_chunks(T, kRouterTokens, [&](int64_t first, int64_t last) {
    std::vector<float> p(static_cast<size_t>(E));
    for (int64_t t = first; t < last; ++t) {
      float* dlogits = args.dlogits.row<float>(t);
      const SoftmaxRow row = softmax_row(args.logits.row<float>(t), p.data(), E);
      const float lse = row.largest + log(row.sum);
      squares[size_t(t)] = lse * lse;
      const float factor = 2.0f * args.beta * lse / float(T);
      for_lanes(E, [&](int64_t i, auto lanes) {
        lanes.store(dlogits + i, fma(splat(factor), lanes.load(p.data() + i), lanes.load(dlogits + i)));
      });
    }
  });
  *args.loss.data<float>() += args.beta * (sum_of(squares.data(), T) / float(T));
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(router_forward, RouterForward)
OCTET_CPU_KERNEL(router_backward, RouterBackward)
OCTET_CPU_KERNEL(balance_loss, BalanceLoss)
OCTET_CPU_KERNEL(router_z_loss, RouterZLoss)
