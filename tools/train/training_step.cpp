#include "tools/train/training_step.h"

namespace octet {

RecomputeParts recompute_parts(const TrainConfig& train) {
  return {.norm = train.recomputes(Recompute::kNorm),
          .swiglu = train.recomputes(Recompute::kSwiglu),
          .attention = train.recomputes(Recompute::kAttention),
          .block = train.recomputes(Recompute::kBlock)};
}

DType moments_dtype(const PrecisionConfig& precision) {
  return precision.moments == MomentType::kBf16 ? DType::kBFloat16 : DType::kFloat32;
}

double run_micro_batches(Transformer& model, const TrainConfig& train, int64_t seq_len,
                         const std::function<Batch(int64_t micro_batch)>& fetch) {
  const int64_t sequences = train.sequences_per_micro_batch(), micro_batches = train.num_micro_batches();
  const int64_t T = sequences * seq_len, tokens = train.batch_size * seq_len;
  double loss_sum = 0;
  for (int64_t m = 0; m < micro_batches; ++m) {
    const Batch batch = fetch(m);
    loss_sum += model
                    .train_micro_batch(from_vector(batch.inputs, {T}), from_vector(batch.targets, {T}), sequences,
                                       1.0f / float(tokens), 1.0f / float(micro_batches))
                    .sum;
  }
  return loss_sum / double(tokens);
}

void apply_update(Transformer& model, AdamW& optimizer, int64_t step, double lr, double norm, Fp8Counts* counts) {
  optimizer.step(step, lr, norm, counts == nullptr ? nullptr : &counts->weight);
  for (Router* router : model.routers()) router->end_step();
}

}  // namespace octet
