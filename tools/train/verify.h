// Proof that a layout of ranks computes what one rank computes: both train the same model on the same tokens, and every
// number that a step makes is compared bit by bit: the loss, the gradient norm, each tensor's gradient, and each tensor
// after the update.
//
// The one rank. Gradients are sums over micro-batches in the layout's order: first those of a rank, then over ranks
// (StepPlan::groups). Where experts lie on several ranks (ep > 1), an expert sums over the tokens of all ranks of its
// group at once, in the order of ranks and of tokens: as one rank does whose micro-batch holds those of the group side
// by side. So the reference runs such a step twice: with the micro-batches of the ranks, for all tensors but the
// experts; and with those of a group joined, for the experts. Rows of a product do not depend on each other, so both
// have the same activations, bit for bit; and no tolerance is left to choose. Where ep is no power of two, the factor
// of a balance loss may round another way when micro-batches are joined.
#pragma once

#include <functional>
#include <string>

#include "parallel/communicator.h"
#include "tools/train/config.h"

namespace octet {

struct LayoutResult {
  int64_t steps = 0, tensors = 0;  // tensors: names on disk
  bool losses_equal = true, norms_equal = true;
  int64_t gradients_different = 0, updates_different = 0;  // tensors, over all steps
  double worst_gradient = 0, worst_update = 0;             // largest difference, over the largest value of the tensor
  double first_loss = 0, last_loss = 0;                    // of the reference
  std::string first_difference;  // "step 1, gradient of ...: 0.25 at [3, 5] and 0.125 on one rank"

  bool is_equal() const { return losses_equal && norms_equal && gradients_different == 0 && updates_different == 0; }
};

// Runs `steps` steps of the layout that config.parallel and config.train describe. world has parallel.dp ranks; all
// call this, and rank 0 compares: the result is complete there. Its memory holds the whole model beside its part.
// config.model.vocab_size is set; tokens are made up.
LayoutResult verify_layout(const Config& config, int64_t steps, Communicator& world);

}  // namespace octet
