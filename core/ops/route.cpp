#include "core/ops/route.h"

#include "kernels/elementwise.h"

namespace octet {

Routing route(const Tensor& logits, const Tensor& bias, const Tensor& replayed, int64_t top_k,
              const kernels::RouterOptions& options, const BalanceOptions& balance) {
  const int64_t T = logits.rows(), E = logits.cols();
  require(logits.dtype() == DType::kFloat32 && 1 <= top_k && top_k <= E,
          "route: logits are {} {} and top_k is {}; wanted float32 and 1 to {}", logits.dtype(), logits.shape(), top_k,
          E);
  Stream& stream = logits.stream();
  const Device device = logits.device();
  Routing routing{.indices = empty({T, top_k}, DType::kInt32, device),
                  .weights = empty({T, top_k}, DType::kFloat32, device)};
  const Tensor scores = empty({T, E}, DType::kFloat32, device);
  kernels::router_forward({.logits = logits,
                           .bias = bias,
                           .replayed = replayed,
                           .scores = scores,
                           .indices = routing.indices,
                           .weights = routing.weights,
                           .options = options},
                          stream);
  if (!is_recording()) return routing;

  Tensor dscores, dlogits_of_z;
  if (balance.losses.is_defined() && balance.alpha != 0.0f && T > 0) {
    dscores = zeros({T, E}, DType::kFloat32, device);
    kernels::balance_loss({.scores = scores,
                           .load = balance.load,
                           .dscores = dscores,
                           .loss = balance.losses.slice_rows(0, 1),
                           .tokens_per_group = balance.tokens_per_group,
                           .top_k = top_k,
                           .alpha = balance.alpha * balance.micro_batch_share},
                          stream);
  }
  if (balance.losses.is_defined() && balance.z_beta != 0.0f && T > 0) {
    dlogits_of_z = zeros({T, E}, DType::kFloat32, device);
    kernels::router_z_loss({.logits = logits,
                            .dlogits = dlogits_of_z,
                            .loss = balance.losses.slice_rows(1, 1),
                            .beta = balance.z_beta * balance.micro_batch_share},
                           stream);
  }
  routing.weights = record("route", routing.weights, {logits},
                           [scores, indices = routing.indices, weights = routing.weights, dscores, dlogits_of_z,
                            options](const Tensor& dweights) -> Gradients {
                             Tensor dlogits = empty(scores.shape(), DType::kFloat32, scores.device());
                             kernels::router_backward({.scores = scores,
                                                       .indices = indices,
                                                       .weights = weights,
                                                       .dweights = dweights,
                                                       .dscores = dscores,
                                                       .dlogits = dlogits,
                                                       .options = options},
                                                      dlogits.stream());
                             if (dlogits_of_z.is_defined()) {
                               kernels::add_into({.a = dlogits, .b = dlogits_of_z, .y = dlogits}, dlogits.stream());
                             }
                             return {dlogits};
                           });
  return routing;
}

}  // namespace octet
