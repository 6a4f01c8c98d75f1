// What a configuration costs, counted before it runs: parameters, operations, memory and disk.
#pragma once

#include <algorithm>
#include <array>
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

// Bytes of a rank's tensors at the widest point of a step, as core/tensor/allocator.h counts them. With parallel.ep P a
// rank holds E / P experts; masters and moments are those of its own rows (parallel/parameter_shards.h), weights and
// gradients those of all rows at hand. Which experts tokens visit is not known before: it is taken as even, but on
// GPUs, where there is room for what messages may bring.
struct MemoryEstimate {
  int64_t masters = 0;      // float32; where the weight is float32 itself, all rows of it
  int64_t weights = 0;      // the copies that products read: bfloat16, or E4M3 with its scales; small tables
  int64_t gradients = 0;    // float32, summed over micro-batches
  int64_t moments = 0;      // Adam's two
  int64_t activations = 0;  // what the forward pass of parallel.interleave micro-batches keeps for their backward pass
  int64_t workspace = 0;    // the largest of the head's logits and of what one layer's backward pass needs besides
  int64_t reduction = 0;    // what other ranks send of the bucket whose gradients are summed first, at the widest point
  int64_t transposed = 0;   // FP8 weights as dgrad reads them on GPUs, kept over the micro-batches of a step
  int64_t saving = 0;       // bfloat16 copies of FP8 weights while a checkpoint is saved, when no activations are held
  int64_t total() const {
    return masters + weights + gradients + moments + std::max(activations + workspace + reduction + transposed, saving);
  }
};
// rank: of parallel.dp.
MemoryEstimate estimate_memory(const Config& config, int64_t vocab_size, int64_t rank = 0);
// The rank that owns the most rows, the first where several do.
int64_t fullest_rank(const Config& config, int64_t vocab_size);

inline constexpr int64_t kStepSums =
    3;  // summed beside losses, loads, squares of gradients and losses of tiles: StepSums

// What one rank sends in a step to other ranks, as Traffic counts it (parallel/communicator.h); off_node is the part
// that goes to other nodes (parallel.ranks_per_node; 0 there means one node). The first three depend on shapes alone.
// What a dispatch moves depends on the routing, and is expected under even routing, each token's experts drawn
// uniformly from those that its groups allow: of a layer and micro-batch with T tokens, over P ranks,
//   T (P - 1) h     copies of tokens to other ranks, h the chance that a rank has one of a token's K experts
//   T K (P - 1) / P rows of experts, each with 8 bytes on the way out and 4 with its gradient
// In two stages T (N - 1) h' copies go to other nodes, h' the same chance of a node, each with a mask of 8 bytes, and
// N T (L - 1) h inside the node, of N nodes with L ranks. Rows of experts go straight to their ranks. On GPUs messages
// have one size, whatever the routing (parallel/device_dispatcher.h).
struct WireBytes {
  struct Line {
    double bytes = 0, off_node = 0;
    void add(double more, double share_off_node) { bytes += more, off_node += more * share_off_node; }
  };
  Line reduce;          // gradients: reduce-scatter
  Line gather;          // updated weights: all-gather
  Line sums;            // gradient norm, losses, loads of experts, losses of tiles: one message of a step
  Line counts;          // how many rows come; and masks
  Line tokens_out;      // forward, to the experts
  Line rows_back;       // forward, from the experts
  Line gradients_out;   // backward, to the experts
  Line gradients_back;  // backward, from the experts
  bool two_stage = false;

  std::array<const Line*, 8> lines() const {
    return {&reduce, &gather, &sums, &counts, &tokens_out, &rows_back, &gradients_out, &gradients_back};
  }
  Line total() const {
    Line sum;
    for (const Line* line : lines()) sum.bytes += line->bytes, sum.off_node += line->off_node;
    return sum;
  }
};
WireBytes wire_bytes(const Config& config, int64_t vocab_size, int64_t rank = 0);

// The chance that a place with `here` of the experts (neighbouring ones) has one of the top_k that a token visits.
double chance_of_visit(const MoeConfig& moe, int64_t here);

// What one checkpoint holds (run_state.cpp): for each name on disk its weight (bfloat16; float32 for norms and with
// recipe fp32), its float32 master unless that is the weight, and two moments; for each router its bias and its last
// load. The bytes are those of the tensors; headers, the manifest and the text files come on top.
struct CheckpointSize {
  int64_t tensors = 0;
  int64_t bytes = 0;
};
// Of all ranks together.
CheckpointSize checkpoint_size(const Config& config, int64_t vocab_size);

}  // namespace octet
