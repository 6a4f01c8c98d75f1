// Chooses K of E experts for each token (arXiv:2412.19437, equations 12 to 16, and the softmax form of Mixtral).
//   s[t,i] = sigmoid(logits[t,i])  or  softmax_i(logits[t,:])
//   c[t,i] = s[t,i] + bias[i];  with G > 1 groups of E/G experts: only the `kept_groups` groups with the largest sum of
//   their 2 largest c (1 where a group has one expert) keep c, all others get -inf
//   indices[t,:] = the K largest c, largest first, ties to the lower index (groups too)
//   w[t,k] = s[t,i_k], then / (sum_k w[t,k] + 1e-20) where `normalize`, then * scaling.  The bias enters no weight.
// Backward of w:  with u[k] = dw[k] * scaling:  ds[i_k] += u[k]                                     (raw)
//                 ds[i_k] += (u[k] - sum_j u[j] w[j] / scaling) / (sum + 1e-20)                     (normalised)
//   dscores, the gradient that the balance losses put on s, is added; then through sigmoid or softmax to dlogits.
// All arithmetic is float32. A NaN score is chosen last; indices are always valid and distinct.
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

enum class ScoreFunction { kSoftmax, kSigmoid };
struct RouterOptions {
  ScoreFunction score = ScoreFunction::kSoftmax;
  int64_t num_groups = 1, kept_groups = 1;  // num_groups divides E
  bool normalize = true;
  float scaling = 1.0f;
};

struct RouterForward {
  ConstView logits;    // [T, E] float32
  ConstView bias;      // [E] float32, or not defined
  ConstView replayed;  // [T, K] int32 indices to use in place of the K largest, or not defined
  View scores;         // [T, E] float32
  View indices;        // [T, K] int32
  View weights;        // [T, K] float32
  RouterOptions options;

  KernelCost cost() const { return {.name = "router_forward", .bytes = bytes_of(logits, scores, indices, weights)}; }
};
struct RouterBackward {
  ConstView scores, indices, weights;  // as the forward pass left them
  ConstView dweights;                  // [T, K] float32
  ConstView dscores;                   // [T, E] float32, or not defined
  View dlogits;                        // [T, E] float32
  RouterOptions options;

  KernelCost cost() const {
    return {.name = "router_backward", .bytes = bytes_of(scores, indices, weights, dweights, dscores, dlogits)};
  }
};
struct BalanceLoss {
  // Load-balance loss over groups of `tokens_per_group` consecutive tokens (equations 17 to 20 of the paper):
  //   P[g,i] = mean_t s[t,i] / sum_j s[t,j];   f[g,i] = E / (K T_g) * #{t : i among the K largest raw s[t,:]}
  //   loss = alpha * mean_g sum_i f[g,i] P[g,i];  f is a constant for the gradient, which is added to dscores
  // The last group may be shorter. A token whose scores are all 0 adds nothing to P.
  // With `load` defined, f[g,i] = E * load[i] for every group instead: the share of each expert in some earlier batch.
  ConstView scores;  // [T, E] float32
  ConstView load;    // [E] float32 that sums to 1, or not defined
  View dscores;      // [T, E] float32, added to
  View loss;         // [1] float32, added to
  int64_t tokens_per_group, top_k;
  float alpha;  // already divided by the number of micro-batches

  KernelCost cost() const { return {.name = "balance_loss", .bytes = bytes_of(scores, dscores, dscores)}; }
};
struct RouterZLoss {
  // loss += beta * mean_t logsumexp_i(logits[t,:])^2 (arXiv:2202.08906); its gradient is added to dlogits
  ConstView logits;  // [T, E] float32
  View dlogits;      // [T, E] float32, added to
  View loss;         // [1] float32, added to
  float beta;

  KernelCost cost() const { return {.name = "router_z_loss", .bytes = bytes_of(logits, dlogits, dlogits)}; }
};
namespace cpu {
void router_forward(const RouterForward& args, Stream& stream);
void router_backward(const RouterBackward& args, Stream& stream);
void balance_loss(const BalanceLoss& args, Stream& stream);
void router_z_loss(const RouterZLoss& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void router_forward(const RouterForward& args, Stream& stream);
void router_backward(const RouterBackward& args, Stream& stream);
void balance_loss(const BalanceLoss& args, Stream& stream);
void router_z_loss(const RouterZLoss& args, Stream& stream);
}  // namespace cuda
inline void router_forward(const RouterForward& args, Stream& stream) {
  dispatch<cpu::router_forward, cuda::router_forward>(args, stream);
}
inline void router_backward(const RouterBackward& args, Stream& stream) {
  dispatch<cpu::router_backward, cuda::router_backward>(args, stream);
}
inline void balance_loss(const BalanceLoss& args, Stream& stream) {
  dispatch<cpu::balance_loss, cuda::balance_loss>(args, stream);
}
inline void router_z_loss(const RouterZLoss& args, Stream& stream) {
  dispatch<cpu::router_z_loss, cuda::router_z_loss>(args, stream);
}

}  // namespace octet::kernels
