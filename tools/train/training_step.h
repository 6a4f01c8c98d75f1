// The arithmetic of one optimizer step, without data, metrics or checkpoints: what Trainer repeats, `octet bench step`
// times and `octet verify` compares.
//
// A step of many ranks is that of one rank with the same micro-batches, bit for bit, where experts are on every rank:
// losses and norms are summed in the order of the micro-batches and of the model, and gradients first over the
// micro-batches of a rank and then over ranks, which one rank does too with StepPlan::groups.
#pragma once

#include <cmath>
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
  bool operator==(const StepPlan&) const = default;
};
StepPlan plan_step(const Config& config, int rank);

// The ranks that share a step; none where this one is alone.
struct StepRanks {
  Communicator* world = nullptr;
  ParameterShards* shards = nullptr;
};

// What a step reads and leaves in the memory of its device, at the same place in every step.

// The tokens of this rank's micro-batches.
class StepTokens {
 public:
  StepTokens(const StepPlan& plan, Device device);
  // fetch(m) gives the m-th micro-batch of the step. To a GPU they are on their way when this returns.
  void fill(const std::function<Batch(int64_t micro_batch)>& fetch);
  Transformer::MicroBatch of(int64_t micro_batch) const;

 private:
  StepPlan plan_;
  Tensor ids_, targets_;  // [count, T] int32
};
// The same for one micro-batch, in new memory.
Transformer::MicroBatch tokens_on(Device device, const Batch& batch);

// The losses of their tokens.
class StepLosses {
 public:
  StepLosses(const StepPlan& plan, Device device);
  Tensor of(int64_t micro_batch) const;             // [T] float32
  const Tensor& of_all() const { return losses_; }  // [count, T]
  // On their way to the host.
  class Reading {
   public:
    // Of each micro-batch of the step, summed over its tokens, in nats; 0 for those of other ranks. Waits for a GPU.
    std::vector<double> wait() const;

   private:
    friend class StepLosses;
    StepPlan plan_;
    Readback losses_;
  };
  Reading read() const;

 private:
  StepPlan plan_;
  Tensor losses_;
};

// A step is, in this order: AdamW::prepare; run_micro_batches; AdamW::measure; sum_step where there are several ranks,
// since the update wants what it sums; apply_update; and sum_step where a rank is alone. Of a GPU that is alone nobody
// waits before the last of them, and what lies between the first and the last is the same in every step, so that it can
// be captured (tools/train/step_graph.h).

// Forward and backward of this rank's micro-batches: tokens_of(m) gives the m-th of the step. Gradients are added to
// the parameters', own rows over all ranks; the routers' loads and losses and the tokens' losses are those of this
// step.
void run_micro_batches(Transformer& model, const StepPlan& plan,
                       const std::function<Transformer::MicroBatch(int64_t micro_batch)>& tokens_of,
                       const StepLosses& losses, const StepRanks& ranks = {});

// What a step sums over ranks besides its gradients; the same on every rank.
struct StepSums {
  double loss = 0;                              // mean over the global batch, nats per token
  double grad_norm = 0;                         // AdamW::gradient_norm
  double balance_loss = 0, z_loss = 0;          // of all routers
  bool asks_to_stop = false;                    // any rank does
  std::vector<std::vector<int64_t>> loads;      // of each router
  std::vector<WgradTiles::Fallback> fallbacks;  // weights that take columns from the next step on

  bool is_finite() const { return std::isfinite(loss) && std::isfinite(grad_norm); }
};
// Sums all of it in one message (model_stats.h, kStepSums), with the loads of the routers, the squares of the optimizer
// and what tiles have lost, which become those of all ranks. The gradients are those of the whole step. The host waits
// for a GPU, once.
StepSums sum_step(Transformer& model, AdamW& optimizer, const StepPlan& plan, const StepLosses& losses,
                  const StepRanks& ranks = {}, bool asks_to_stop = false);

// Applies the gradients where their norm and the losses are finite, gathers the weights, and clears the gradients,
// whose numbers stay where they are until the next are added. counts: of what quantising the weights did; null: none.
void apply_update(Transformer& model, AdamW& optimizer, const StepLosses& losses, Fp8Counts* counts,
                  const StepRanks& ranks = {});

}  // namespace octet
