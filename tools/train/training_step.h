// The arithmetic of one optimizer step, without data, metrics or checkpoints: what Trainer repeats and `octet bench
// step` times.
#pragma once

#include <functional>

#include "core/nn/transformer.h"
#include "optim/adamw.h"
#include "tools/data/dataset.h"
#include "tools/train/config.h"

namespace octet {

RecomputeParts recompute_parts(const TrainConfig& train);
DType moments_dtype(const PrecisionConfig& precision);

// Forward and backward of every micro-batch: fetch(m) gives the m-th. Gradients are added to the parameters'; the
// result is the mean loss over the global batch, nats per token.
double run_micro_batches(Transformer& model, const TrainConfig& train, int64_t seq_len,
                         const std::function<Batch(int64_t micro_batch)>& fetch);

// Applies the gradients, of norm `norm` before clipping, as step `step` (1 is the first), and clears them. counts: of
// what quantising the weights did; null: none.
void apply_update(Transformer& model, AdamW& optimizer, int64_t step, double lr, double norm, Fp8Counts* counts);

}  // namespace octet
