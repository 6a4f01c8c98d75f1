// The arithmetic of one optimizer step, without data, metrics or checkpoints: what Trainer repeats, `octet bench step`
// times and `octet verify` compares.
//
// A step of many ranks is that of one rank with the same micro-batches, bit for bit, where experts are on every rank:
// losses and norms are summed in the order of the micro-batches and of the model, and gradients first over the
// micro-batches of a rank and then over ranks, which one rank does too with StepPlan::groups.
#pragma once

#include <functional>
#include <vector>

#include "core/nn/transformer.h"
#include "optim/adamw.h"
#include "parallel/parameter_shards.h"
#include "tools/data/dataset.h"
#include "tools/train/config.h"

namespace octet {

RecomputeParts recompute_parts(const TrainConfig& train);
DType moments_dtype(const PrecisionConfig& precision);

struct StepPlan {
  int64_t seq_len = 1, sequences = 1;  // of a micro-batch
  int64_t micro_batches = 1;           // of the step, over all ranks
  int64_t first = 0, count = 1;        // of them, this rank's
  int64_t interleave = 1;              // computed in turn, layer by layer
  int64_t groups = 1;  // gradients are summed inside each of so many runs of micro-batches, then over these in order

  int64_t tokens() const { return micro_batches * sequences * seq_len; }  // of the step
};
StepPlan plan_step(const Config& config, int rank);

// The ranks that share a step; none where this one is alone.
struct StepRanks {
  Communicator* world = nullptr;
  ParameterShards* shards = nullptr;
};

// The losses of a rank's micro-batches, which a GPU may still be making.
class StepLosses {
 public:
  StepLosses(const StepPlan& plan, std::vector<HeadLoss> parts) : plan_(plan), parts_(std::move(parts)) {}
  // Of each micro-batch of the step, summed over its tokens, in nats; 0 for those of other ranks. Waits for a GPU.
  std::vector<double> wait() const;

 private:
  StepPlan plan_;
  std::vector<HeadLoss> parts_;
};

// Forward and backward of this rank's micro-batches: fetch(m) gives the m-th of the step. Gradients are added to the
// parameters', own rows over all ranks. Where this rank is alone, the host asks for all of it and waits for none.
StepLosses run_micro_batches(Transformer& model, const StepPlan& plan,
                             const std::function<Batch(int64_t micro_batch)>& fetch, const StepRanks& ranks = {});

// What a step sums over ranks besides its gradients; the same on every rank.
struct StepSums {
  double loss = 0;                          // mean over the global batch, nats per token
  double grad_norm = 0;                     // AdamW::gradient_norm
  double balance_loss = 0, z_loss = 0;      // of all routers
  bool asks_to_stop = false;                // any rank does
  std::vector<std::vector<int64_t>> loads;  // of each router
};
// Sums all of it in one message (model_stats.h, kStepSums), with the loads of the routers, which become those of all
// ranks. losses: of run_micro_batches; the gradients are those of the whole step. The host waits for a GPU, once.
StepSums sum_step(Transformer& model, const AdamW& optimizer, const StepPlan& plan, const StepLosses& losses,
                  const StepRanks& ranks = {}, bool asks_to_stop = false);

// Applies the gradients, of norm `norm` before clipping, as step `step` (1 is the first), clears them, and gathers the
// weights. counts: of what quantising the weights did; null: none.
void apply_update(Transformer& model, AdamW& optimizer, int64_t step, double lr, double norm, Fp8Counts* counts,
                  const StepRanks& ranks = {});

}  // namespace octet
