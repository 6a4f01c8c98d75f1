// From router logits to experts and their weights, and the losses that balance them (kernels/router.h).
#pragma once

#include "core/autograd/tape.h"
#include "kernels/router.h"

namespace octet {

struct BalanceOptions {
  float alpha = 0.0f;            // weight of the balance loss; 0: none
  int64_t tokens_per_group = 1;  // over which it is computed
  Tensor load;          // [E] float32 that sums to 1: the load of an earlier batch in place of this group's own
  float z_beta = 0.0f;  // weight of the z-loss; 0: none
  float micro_batch_share = 1.0f;  // of this micro-batch in the step: both losses are means over the global batch
  Tensor losses;  // [2] float32: the balance loss times alpha and the z-loss times z_beta, both times the share, are
                  // added to it; their gradients flow by themselves. Not defined: there are no losses
};

struct Routing {
  Tensor indices;  // [T, K] int32
  Tensor weights;  // [T, K] float32, on the tape
};

// logits: [T, E] float32; bias: [E] float32 or not defined; replayed: [T, K] int32 or not defined. The losses put their
// gradients on the logits when the tape runs back through this op; they are not part of any tensor's value.
Routing route(const Tensor& logits, const Tensor& bias, const Tensor& replayed, int64_t top_k,
              const kernels::RouterOptions& options, const BalanceOptions& balance);

}  // namespace octet
