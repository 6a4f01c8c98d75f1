// The transformer of core/nn in float64 by plain loops, written from the formulas and from nothing else: the loss of a
// batch as a function of tensors by their names on disk.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <string>

#include "core/nn/transformer.h"
#include "tests/support/numeric.h"

namespace octet::test {

using NamedWeights = std::map<std::string, Doubles>;

inline NamedWeights named_weights(Transformer& model) {
  NamedWeights weights;
  for (Parameter* parameter : model.parameters()) {
    const auto values = to_vector<float>(parameter->master());
    const auto cols = size_t(parameter->shape().cols());
    for (const WeightPiece& piece : parameter->pieces()) {
      const auto first = values.begin() + std::ptrdiff_t(size_t(piece.first_row) * cols);
      weights[piece.name] = Doubles(first, first + std::ptrdiff_t(size_t(piece.rows) * cols));
    }
  }
  return weights;
}

// The gradient of one piece, from the main gradients of the model.
inline Doubles named_gradient(Transformer& model, const std::string& name) {
  for (Parameter* parameter : model.parameters()) {
    const auto cols = size_t(parameter->shape().cols());
    for (const WeightPiece& piece : parameter->pieces()) {
      if (piece.name != name) continue;
      const auto values = to_vector<float>(parameter->grad());
      const auto first = values.begin() + std::ptrdiff_t(size_t(piece.first_row) * cols);
      return Doubles(first, first + std::ptrdiff_t(size_t(piece.rows) * cols));
    }
  }
  FAIL("no tensor " << name);
  return {};
}

class ReferenceModel {
 public:
  explicit ReferenceModel(ModelConfig config) : config_(std::move(config)) {}

  // Mean cross-entropy plus the balance losses; ids and targets: [batch, S].
  double loss(const NamedWeights& weights, const std::vector<int32_t>& ids, const std::vector<int32_t>& targets,
              size_t batch) {
    weights_ = &weights;
    batch_ = batch;
    balance_ = 0;
    const size_t T = ids.size(), D = size_t(config_.hidden), V = size_t(config_.vocab_size);
    Doubles x(T * D);
    for (size_t t = 0; t < T; ++t) {
      for (size_t d = 0; d < D; ++d) x[t * D + d] = at("model.embed_tokens.weight")[size_t(ids[t]) * D + d];
    }
    for (int64_t layer = 0; layer < config_.layers; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      add_to(x, attention(norm(x, prefix + "input_layernorm.weight"), prefix + "self_attn."));
      const Doubles n = norm(x, prefix + "post_attention_layernorm.weight");
      add_to(x, config_.is_moe_layer(layer) ? moe(n, prefix + "mlp.")
                                            : ffn(n, prefix + "mlp.", size_t(config_.ffn_hidden)));
    }
    const Doubles h = norm(x, "model.norm.weight");
    logits_ = product(h, at(config_.tied_head ? "model.embed_tokens.weight" : "lm_head.weight"), D, V);
    double sum = 0;
    for (size_t t = 0; t < T; ++t) {
      double total = 0;
      for (size_t v = 0; v < V; ++v) total += std::exp(logits_[t * V + v]);
      sum += std::log(total) - logits_[t * V + size_t(targets[t])];
    }
    return sum / double(T) + balance_;
  }
  const Doubles& logits() const { return logits_; }

 private:
  const Doubles& at(const std::string& name) const { return weights_->at(name); }
  static void add_to(Doubles& x, const Doubles& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  // x [T, K] times w [N, K] transposed.
  static Doubles product(const Doubles& x, const Doubles& w, size_t K, size_t N) {
    const size_t T = x.size() / K;
    Doubles y(T * N, 0.0);
    for (size_t t = 0; t < T; ++t) {
      for (size_t n = 0; n < N; ++n) {
        for (size_t k = 0; k < K; ++k) y[t * N + n] += x[t * K + k] * w[n * K + k];
      }
    }
    return y;
  }
  Doubles norm(const Doubles& x, const std::string& name) const {
    const size_t D = size_t(config_.hidden);
    Doubles y(x.size());
    for (size_t row = 0; row < x.size(); row += D) {
      double sum = 0;
      for (size_t d = 0; d < D; ++d) sum += x[row + d] * x[row + d];
      for (size_t d = 0; d < D; ++d) {
        y[row + d] = x[row + d] / std::sqrt(sum / double(D) + double(config_.norm_eps)) * at(name)[d];
      }
    }
    return y;
  }
  Doubles ffn(const Doubles& x, const std::string& prefix, size_t F) const {
    const size_t D = size_t(config_.hidden);
    Doubles gate = product(x, at(prefix + "gate_proj.weight"), D, F);
    const Doubles up = product(x, at(prefix + "up_proj.weight"), D, F);
    const double limit = config_.swiglu_limit > 0 ? double(config_.swiglu_limit) : INFINITY;
    for (size_t i = 0; i < gate.size(); ++i) {
      const double g = std::min(gate[i], limit);
      gate[i] = g / (1 + std::exp(-g)) * std::clamp(up[i], -limit, limit);
    }
    return product(gate, at(prefix + "down_proj.weight"), F, D);
  }
  void rotate(Doubles& x, size_t heads) const {
    const size_t hd = size_t(config_.head_width()), T = x.size() / (heads * hd), S = T / batch_;
    const bool half = config_.rope_layout == kernels::RopeLayout::kHalf;
    for (size_t t = 0; t < T; ++t) {
      for (size_t h = 0; h < heads; ++h) {
        for (size_t i = 0; i < hd / 2; ++i) {
          const double angle = double(t % S) * std::pow(double(config_.rope_theta), -2.0 * double(i) / double(hd));
          double& a = x[(t * heads + h) * hd + (half ? i : 2 * i)];
          double& b = x[(t * heads + h) * hd + (half ? i + hd / 2 : 2 * i + 1)];
          const double turned = a * std::cos(angle) - b * std::sin(angle);
          b = a * std::sin(angle) + b * std::cos(angle);
          a = turned;
        }
      }
    }
  }
  Doubles attention(const Doubles& x, const std::string& prefix) const {
    const size_t D = size_t(config_.hidden), H = size_t(config_.heads), Hkv = size_t(config_.num_kv_heads());
    const size_t hd = size_t(config_.head_width()), T = x.size() / D, S = T / batch_;
    Doubles q = product(x, at(prefix + "q_proj.weight"), D, H * hd);
    Doubles k = product(x, at(prefix + "k_proj.weight"), D, Hkv * hd);
    const Doubles v = product(x, at(prefix + "v_proj.weight"), D, Hkv * hd);
    rotate(q, H);
    rotate(k, Hkv);
    Doubles o(T * H * hd, 0.0);
    for (size_t t = 0; t < T; ++t) {
      for (size_t h = 0; h < H; ++h) {
        const size_t g = h / (H / Hkv), first = t / S * S;
        Doubles p;
        double total = 0;
        for (size_t j = first; j <= t; ++j) {
          double dot = 0;
          for (size_t d = 0; d < hd; ++d) dot += q[(t * H + h) * hd + d] * k[(j * Hkv + g) * hd + d];
          p.push_back(std::exp(dot / std::sqrt(double(hd))));
          total += p.back();
        }
        for (size_t j = first; j <= t; ++j) {
          for (size_t d = 0; d < hd; ++d) o[(t * H + h) * hd + d] += p[j - first] / total * v[(j * Hkv + g) * hd + d];
        }
      }
    }
    return product(o, at(prefix + "o_proj.weight"), H * hd, D);
  }
  static std::vector<size_t> largest(const Doubles& values, size_t count) {
    std::vector<size_t> order(values.size());
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] > values[b]; });
    order.resize(count);
    return order;
  }
  Doubles moe(const Doubles& x, const std::string& prefix) {
    const MoeConfig& moe = config_.moe;
    const size_t D = size_t(config_.hidden), E = size_t(moe.num_experts), K = size_t(moe.top_k), T = x.size() / D;
    const size_t F = size_t(moe.expert_hidden), S = T / batch_;
    const Doubles logits = product(x, at(prefix + "gate.weight"), D, E);
    Doubles y = moe.shared_experts > 0 ? ffn(x, prefix + "shared_experts.", F * size_t(moe.shared_experts))
                                       : Doubles(x.size(), 0.0);
    std::vector<Doubles> scores(T);
    for (size_t t = 0; t < T; ++t) {
      Doubles s(logits.begin() + std::ptrdiff_t(t * E), logits.begin() + std::ptrdiff_t((t + 1) * E));
      double total = 0, lse = 0;
      for (const double z : s) total += std::exp(z);
      lse = std::log(total);
      balance_ += double(moe.z_loss_beta) * lse * lse / double(T);
      for (double& z : s)
        z = moe.score == kernels::ScoreFunction::kSoftmax ? std::exp(z) / total : 1 / (1 + std::exp(-z));
      scores[t] = s;
      Doubles choice = s;
      if (moe.num_groups > 1) {
        const size_t G = size_t(moe.num_groups), each = E / G;
        Doubles group(G);
        for (size_t g = 0; g < G; ++g) {
          Doubles in(choice.begin() + std::ptrdiff_t(g * each), choice.begin() + std::ptrdiff_t((g + 1) * each));
          std::sort(in.rbegin(), in.rend());
          group[g] = in[0] + (each > 1 ? in[1] : 0.0);
        }
        const auto kept = largest(group, size_t(moe.kept_groups));
        for (size_t e = 0; e < E; ++e) {
          if (std::find(kept.begin(), kept.end(), e / each) == kept.end()) choice[e] = -INFINITY;
        }
      }
      const auto chosen = largest(choice, K);
      double sum = 0;
      for (const size_t e : chosen) sum += s[e];
      const Doubles row(x.begin() + std::ptrdiff_t(t * D), x.begin() + std::ptrdiff_t((t + 1) * D));
      for (const size_t e : chosen) {
        const double w = double(moe.routed_scaling) * (moe.normalize_weights ? s[e] / sum : s[e]);
        const Doubles out = ffn(row, prefix + "experts." + std::to_string(e) + ".", F);
        for (size_t d = 0; d < D; ++d) y[t * D + d] += w * out[d];
      }
    }
    if (moe.aux_loss != AuxLoss::kNone) {
      const size_t each = moe.aux_loss == AuxLoss::kSequence ? S : T, groups = T / each;
      for (size_t g = 0; g < groups; ++g) {
        Doubles f(E, 0.0), P(E, 0.0);
        for (size_t t = g * each; t < (g + 1) * each; ++t) {
          for (const size_t e : largest(scores[t], K)) f[e] += double(E) / double(K * each);
          const double total = std::accumulate(scores[t].begin(), scores[t].end(), 0.0);
          for (size_t e = 0; e < E; ++e) P[e] += scores[t][e] / total / double(each);
        }
        if (moe.aux_loss == AuxLoss::kGlobalBatch) f.assign(E, 1.0);  // before the first step the load is even
        for (size_t e = 0; e < E; ++e) balance_ += double(moe.aux_loss_alpha) * f[e] * P[e] / double(groups);
      }
    }
    return y;
  }

  ModelConfig config_;
  const NamedWeights* weights_ = nullptr;
  size_t batch_ = 1;
  double balance_ = 0;
  Doubles logits_;
};

}  // namespace octet::test
