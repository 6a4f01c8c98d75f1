#include "kernels/router.h"

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"
//
#include "kernels/cpu/fp8_simd.inc"

namespace {

constexpr int64_t kRouterTokens = 32;  // tokens that one thread takes at a time; the balance loss sums them first
constexpr float kRouterGuard = 1e-20f;

// Room for n numbers and more, up to whole vectors: what is stored as one can be read at once as one. A few need no
// memory of their own.
template <class Number>
class Room {
 public:
  explicit Room(int64_t n) : many_(size_t(n > kFew ? whole(n) / 16 : 0)) {}
  Number* data() { return many_.empty() ? few_ : many_.data()->numbers; }
  static int64_t whole(int64_t n) { return (n + 15) / 16 * 16; }

 private:
  static constexpr int64_t kFew = 64;
  struct alignas(64) Sixteen {
    Number numbers[16];
  };
  alignas(64) Number few_[kFew] = {};
  std::vector<Sixteen> many_;
};

// Floats as integers of the same order, -0 beside 0 and NaN below every number; taken ones are below NaN.
constexpr int32_t kTakenKey = std::numeric_limits<int32_t>::min();
constexpr int32_t kDroppedKey = kTakenKey + 0x7fffff;  // of -infinity
OCTET_INLINE i32x16 order_keys(f32x16 x) {
  const i32x16 u = bits(x + splat(0.0f));
  return select(is_nan(x), splat_i32(kTakenKey + 1), u ^ (shift_right_signed<31>(u) & splat_i32(0x7fffffff)));
}
OCTET_INLINE i32x16 first_lanes_or(i32x16 a, int64_t n, int32_t other) {
  return select(greater_i32(splat_i32(int32_t(std::min<int64_t>(n, 16))), lane_numbers()), a, splat_i32(other));
}
// keys[0..n) of x[0..n), and taken ones up to a whole vector.
OCTET_INLINE void make_keys(const float* x, int64_t n, int32_t* keys) {
  for_lanes(n, [=](int64_t i, auto lanes) {
    store_i32(keys + i, first_lanes_or(order_keys(lanes.load(x + i)), n - i, kTakenKey));
  });
}

// The `wanted` largest of keys[0..n), largest first, ties to the lower index; their keys are taken. keys has whole
// vectors.
OCTET_INLINE void take_largest(int32_t* keys, int64_t n, int64_t wanted, int32_t* indices) {
  for (int64_t k = 0; k < wanted; ++k) {
    i32x16 top = load_i32(keys);
    for (int64_t i = 16; i < n; i += 16) top = max_i32(top, load_i32(keys + i));
    const i32x16 largest = splat_i32(reduce_max_i32(top));
    int64_t from = 0;
    int lane = 0;
    while ((lane = first(equal_i32(load_i32(keys + from), largest))) == 16) from += 16;
    store_i32(keys + from,
              select(equal_i32(lane_numbers(), splat_i32(lane)), splat_i32(kTakenKey), load_i32(keys + from)));
    indices[k] = int32_t(from + lane);
  }
}

// p = softmax(x) over n values, p whole vectors. log sum exp is largest + log(sum).
struct SoftmaxRow {
  float largest, sum;
};
OCTET_INLINE SoftmaxRow softmax_row(const float* x, float* p, int64_t n) {
  // A NaN is passed over, but not as the first.
  f32x16 top = splat(x[0]);
  for_lanes(n, [&](int64_t i, auto lanes) {
    const f32x16 here = from_bits(first_lanes_or(bits(lanes.load(x + i)), n - i, std::bit_cast<int32_t>(x[0])));
    top = max(here, top);
  });
  const float largest_logit = reduce_max(top);
  f32x16 sums = splat(0.0f);
  for_lanes(n, [&](int64_t i, auto lanes) {
    const f32x16 e = exp(lanes.load(x + i) - splat(largest_logit));
    store(p + i, e);
    sums += from_bits(first_lanes_or(bits(e), n - i, 0));
  });
  const float sum = reduce_add(sums);
  for (int64_t i = 0; i < n; i += 16) store(p + i, load(p + i) / splat(sum));
  return {largest_logit, sum};
}

}  // namespace

void router_forward(const RouterForward& args, Stream& stream) {
  const int64_t E = args.logits.cols(), K = args.indices.cols();
  const RouterOptions& options = args.options;
  const int64_t G = options.num_groups, per_group = E / G;
  const float* bias = args.bias.is_defined() ? args.bias.data<float>() : nullptr;
  stream.parallel_chunks(args.logits.rows(), kRouterTokens, [&](int64_t first, int64_t last) {
    Room<float> scores_room(E), choice_room(E), group_sums(G);
    Room<int32_t> keys_room(E), keys_of_group(per_group), group_keys(G), group_order(G);
    float* const scores = scores_room.data();
    int32_t* const keys = keys_room.data();
    for (int64_t t = first; t < last; ++t) {
      const float* logits = args.logits.row<float>(t);
      int32_t* indices = args.indices.row<int32_t>(t);
      float* weights = args.weights.row<float>(t);
      if (options.score == ScoreFunction::kSoftmax) {
        softmax_row(logits, scores, E);
      } else {
        for_lanes(E, [=](int64_t i, auto lanes) { store(scores + i, sigmoid(lanes.load(logits + i))); });
      }
      float* kept_scores = args.scores.row<float>(t);
      for_lanes(E, [=](int64_t i, auto lanes) { lanes.store(kept_scores + i, load(scores + i)); });
      if (args.replayed.is_defined()) {
        std::copy_n(args.replayed.row<int32_t>(t), K, indices);
      } else {
        const float* choice = scores;
        if (bias != nullptr) {
          for_lanes(E, [&](int64_t i, auto lanes) {
            store(choice_room.data() + i, load(scores + i) + lanes.load(bias + i));
          });
          choice = choice_room.data();
        }
        make_keys(choice, E, keys);
        if (options.kept_groups < G) {
          for (int64_t g = 0; g < G; ++g) {
            int32_t best[2];
            make_keys(choice + g * per_group, per_group, keys_of_group.data());
            take_largest(keys_of_group.data(), per_group, std::min<int64_t>(2, per_group), best);
            float sum = choice[g * per_group + best[0]];
            if (per_group > 1) sum += choice[g * per_group + best[1]];
            group_sums.data()[g] = sum;
          }
          make_keys(group_sums.data(), G, group_keys.data());
          take_largest(group_keys.data(), G, G, group_order.data());
          for (int64_t rank = options.kept_groups; rank < G; ++rank) {
            std::fill_n(keys + group_order.data()[rank] * per_group, per_group, kDroppedKey);
          }
        }
        take_largest(keys, E, K, indices);
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
    Room<float> room(E);
    float* const ds = room.data();
    for (int64_t t = first; t < last; ++t) {
      const float* s = args.scores.row<float>(t);
      const int32_t* indices = args.indices.row<int32_t>(t);
      const float* dweights = args.dweights.row<float>(t);
      const float* dscores = args.dscores.is_defined() ? args.dscores.row<float>(t) : nullptr;
      float* dlogits = args.dlogits.row<float>(t);
      for_lanes(
          E, [&](int64_t i, auto lanes) { store(ds + i, dscores == nullptr ? splat(0.0f) : lanes.load(dscores + i)); });
      float sum = kRouterGuard, dot = 0.0f;  // dot = sum_k u[k] w[k] / scaling
      if (options.normalize) {
        float chosen = 0.0f;
        for (int64_t k = 0; k < K; ++k) chosen += s[indices[k]];
        sum += chosen;
        for (int64_t k = 0; k < K; ++k) dot += dweights[k] * options.scaling * (s[indices[k]] / sum);
      }
      for (int64_t k = 0; k < K; ++k) {
        const float u = dweights[k] * options.scaling;
        ds[indices[k]] += options.normalize ? (u - dot) / sum : u;
      }
      if (options.score == ScoreFunction::kSigmoid) {
        for_lanes(E, [&](int64_t i, auto lanes) {
          const f32x16 si = lanes.load(s + i);
          lanes.store(dlogits + i, load(ds + i) * si * (splat(1.0f) - si));
        });
      } else {
        f32x16 along = splat(0.0f);
        for_lanes(E, [&](int64_t i, auto lanes) { along = fma(load(ds + i), lanes.load(s + i), along); });
        const float mean = reduce_add(along);
        for_lanes(E, [&](int64_t i, auto lanes) {
          lanes.store(dlogits + i, lanes.load(s + i) * (load(ds + i) - splat(mean)));
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
  Room<float> shares(B * Room<float>::whole(E));  // [B, E and more], sum over tokens of s / sum_j s
  std::vector<int32_t> chosen(static_cast<size_t>(counts_tokens ? B * E : 0), 0);
  stream.parallel_for(B, [&](int64_t b) {
    Room<int32_t> keys(E), indices(K);
    float* share = shares.data() + b * Room<float>::whole(E);
    for (int64_t t = blocks[size_t(b)].begin; t < blocks[size_t(b)].end; ++t) {
      const float* s = args.scores.row<float>(t);
      const float sum = sum_of(s, E);
      if (sum != 0.0f) {
        for_lanes(E,
                  [=](int64_t i, auto lanes) { store(share + i, load(share + i) + lanes.load(s + i) / splat(sum)); });
      }
      if (!counts_tokens) continue;
      make_keys(s, E, keys.data());
      take_largest(keys.data(), E, K, indices.data());
      for (int64_t k = 0; k < K; ++k) ++chosen[size_t(b * E + indices.data()[k])];
    }
  });
  std::vector<float> f(static_cast<size_t>(G * E)), P(static_cast<size_t>(G * E), 0.0f);
  std::vector<int64_t> count(static_cast<size_t>(G * E), 0);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t i = 0; i < E; ++i) {
      const size_t at = size_t(blocks[size_t(b)].group * E + i);
      P[at] += shares.data()[b * Room<float>::whole(E) + i];
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
    Room<float> p(E);
    for (int64_t t = first; t < last; ++t) {
      float* dlogits = args.dlogits.row<float>(t);
      const SoftmaxRow row = softmax_row(args.logits.row<float>(t), p.data(), E);
      const float lse = row.largest + log(row.sum);
      squares[size_t(t)] = lse * lse;
      const float factor = 2.0f * args.beta * lse / float(T);
      for_lanes(E, [&](int64_t i, auto lanes) {
        lanes.store(dlogits + i, fma(splat(factor), load(p.data() + i), lanes.load(dlogits + i)));
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
