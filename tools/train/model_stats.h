// What a configuration costs, counted before it runs: parameters, operations, memory and disk.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tools/train/config.h"

namespace octet {

// Parameters. With D hidden, H heads of width C, G key-value heads, F the dense and X the expert hidden width, E
// experts of which a token visits K, S shared experts, V vocabulary:
//   attention of a layer   D H C + 2 D G C + H C D          (query, key and value, output; no biases)
//   dense feed-forward     3 D F                            (gate, up, down)
//   expert                 3 D X;  the shared ones 3 D (S X)
//   gate of a layer        E D
//   norms                  2 D a layer, and D at the end
//   embedding V D;  head V D, or 0 where it is tied
// Active are those that one token's forward pass goes through: K experts of E, all of the rest.
struct ParameterCounts {
  int64_t embedding = 0;
  int64_t head = 0;
  int64_t attention = 0;  // this and the following: of all layers
  int64_t dense_ffn = 0;
  int64_t routed_experts = 0;
  int64_t active_routed_experts = 0;
  int64_t shared_experts = 0;
  int64_t gates = 0;
  int64_t norms = 0;
  int64_t routing_bias = 0;  // E a layer with experts: state, counted in no sum

  int64_t total() const {
    return embedding + head + attention + dense_ffn + routed_experts + shared_experts + gates + norms;
  }
  int64_t active() const { return total() - routed_experts + active_routed_experts; }
  int64_t total_without_embeddings() const { return total() - embedding - head; }
  int64_t active_without_embeddings() const { return active() - embedding - head; }
  // In matrices that a token is multiplied with: all but the norms and the look-up in the embedding, which counts only
  // where it is the head as well.
  int64_t active_matmul() const { return active_without_embeddings() - norms + (head == 0 ? embedding : head); }
};

// vocab_size stands in where the configuration leaves it to the tokenizer.
ParameterCounts count_parameters(const ModelConfig& model, int64_t vocab_size);

// Floating point operations of the forward and the backward pass for one token of a sequence of seq_len, two for a
// multiply-add, as the published figures of DeepSeek-V3 count them:
//   6 * active_matmul + 3 L H (C + C) seq_len
// The second term is the causal half of attention's two products: a position attends to seq_len / 2 on average, so
// 2 * 2 C H * seq_len / 2 forward, and three times that with the backward pass. This is the model's work; what
// recomputation adds is not in it.
double training_flops_per_token(const ModelConfig& model, int64_t vocab_size, int64_t seq_len);

// Bytes of tensors at the widest point of a step, as core/tensor/allocator.h counts them.
struct MemoryEstimate {
  int64_t masters = 0;      // float32
  int64_t weights = 0;      // the copies that products read: bfloat16, or E4M3 with its scales; small tables
  int64_t gradients = 0;    // float32, summed over micro-batches
  int64_t moments = 0;      // Adam's two
  int64_t activations = 0;  // what the forward pass of one micro-batch keeps for its backward pass
  int64_t workspace = 0;    // the largest of the head's logits and of what one layer's backward pass needs besides
  int64_t saving = 0;       // bfloat16 copies of FP8 weights while a checkpoint is saved, when no activations are held
  int64_t total() const { return masters + weights + gradients + moments + std::max(activations + workspace, saving); }
};
MemoryEstimate estimate_memory(const Config& config, int64_t vocab_size);

// What one checkpoint holds (run_state.cpp): for each name on disk its weight (bfloat16; float32 for norms and with
// recipe fp32), its float32 master unless that is the weight, and two moments; for each router its bias and its last
// load. The bytes are those of the tensors; headers, the manifest and the text files come on top.
struct CheckpointSize {
  int64_t tensors = 0;
  int64_t bytes = 0;
};
CheckpointSize checkpoint_size(const Config& config, int64_t vocab_size);

}  // namespace octet
