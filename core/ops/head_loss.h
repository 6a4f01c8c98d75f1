// The output projection and the cross-entropy loss in one, a chunk of tokens at a time, so that the logits of a whole
// batch are never stored.
#pragma once

#include <algorithm>
#include <span>

#include "core/autograd/tape.h"
#include "core/ops/product.h"
#include "core/tensor/transfer.h"

namespace octet {

// Tokens of one chunk: logits of about 16 MiB in float32, and 256 tokens at least, since each chunk reads all of the
// weight, and reads and writes all of its gradient.
inline int64_t head_chunk_tokens(int64_t vocab) { return std::max<int64_t>(256, (int64_t(4) << 20) / vocab / 64 * 64); }

struct HeadLoss {
  Tensor anchor;           // [1] on the tape: the place to run back from
  Tensor losses, targets;  // [T] float32 and int32
  // Both, on their way to the host.
  class Reading {
   public:
    double sum() const;      // of the losses of all tokens in their order, in nats; waits for a GPU
    int64_t tokens() const;  // that have a target

   private:
    friend struct HeadLoss;
    Readback losses_, targets_;
  };
  Reading read() const;
};
double sum_of_losses(std::span<const float> losses);

// x: [T, D]; weight: [V, D] float32 or bfloat16, as x; targets: [T] int32 in [0, V), or -1 for none.
// Recorded: the gradient of grad_scale * sum is computed here, chunk by chunk while the logits are at hand. That of
// weight is added to weight.grad() at once, that of x is kept and handed on by backward(anchor, ...).
HeadLoss head_loss(const Tensor& x, Parameter& weight, const Tensor& targets, float grad_scale);

// Logits of each row, [T, V] float32. Not recorded.
Tensor head_logits(const Tensor& x, const Parameter& weight);

}  // namespace octet
