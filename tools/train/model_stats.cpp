#include "tools/train/model_stats.h"

#include <algorithm>

#include "core/ops/head_loss.h"
#include "core/tensor/allocator.h"

namespace octet {
namespace {

// A parameter of the model as core/nn makes it.
struct ParameterShape {
  enum Kind {
    kNorm,
    kHighPrecision,
    kLinear
  } kind;  // the two latter: gate, embedding and head; and all other matrices
  int64_t groups, rows, cols;
  int64_t pieces = 1;  // names on disk
  int64_t copies = 1;  // layers that have one
  int64_t elements() const { return groups * rows * cols; }
};

void visit_parameters(const ModelConfig& model, int64_t vocab_size, auto&& visit) {
  const int64_t D = model.hidden, V = model.vocab_size == 0 ? vocab_size : model.vocab_size;
  const int64_t q = model.heads * model.head_width(), kv = model.num_kv_heads() * model.head_width();
  const int64_t moe_layers = model.num_moe_layers(), dense_layers = model.layers - moe_layers;
  const int64_t E = model.moe.num_experts, X = model.moe.expert_hidden, shared = model.moe.shared_experts * X;
  using Shape = ParameterShape;
  visit(Shape{Shape::kHighPrecision, 1, V, D});
  visit(Shape{Shape::kNorm, 1, 1, D, 1, 2 * model.layers + 1});
  visit(Shape{Shape::kLinear, 1, q + 2 * kv, D, 3, model.layers});
  visit(Shape{Shape::kLinear, 1, D, q, 1, model.layers});
  if (dense_layers > 0) {
    visit(Shape{Shape::kLinear, 1, 2 * model.ffn_hidden, D, 2, dense_layers});
    visit(Shape{Shape::kLinear, 1, D, model.ffn_hidden, 1, dense_layers});
  }
  if (moe_layers > 0) {
    visit(Shape{Shape::kHighPrecision, 1, E, D, 1, moe_layers});
    visit(Shape{Shape::kLinear, E, 2 * X, D, 2 * E, moe_layers});
    visit(Shape{Shape::kLinear, E, D, X, E, moe_layers});
    if (shared > 0) {
      visit(Shape{Shape::kLinear, 1, 2 * shared, D, 2, moe_layers});
      visit(Shape{Shape::kLinear, 1, D, shared, 1, moe_layers});
    }
  }
  if (!model.tied_head) visit(Shape{Shape::kHighPrecision, 1, V, D});
}

int64_t blocks(int64_t n) { return (n + 127) / 128; }

// The activations of T tokens, in bytes as they are allocated.
class Activations {
 public:
  Activations(const Config& config, int64_t vocab_size)
      : model_(config.model),
        train_(config.train),
        is_fp8_(config.precision.recipe == Recipe::kFp8Block),
        value_bytes_(config.precision.recipe == Recipe::kFp32 ? 4 : 2),
        T_(config.sequences_per_micro_batch() * config.data.seq_len),
        V_(config.model.vocab_size == 0 ? vocab_size : config.model.vocab_size) {}

  // Kept between the forward and the backward pass.
  int64_t kept() const {
    const bool whole_block = train_.recomputes(Recompute::kBlock);
    int64_t bytes = values(T_, model_.hidden) + floats(T_);  // the input of the last norm
    for (int64_t layer = 0; layer < model_.layers; ++layer) {
      bytes += values(T_, model_.hidden);  // the block's input
      if (whole_block) continue;
      if (!train_.recomputes(Recompute::kAttention)) bytes += attention();
      bytes += feed_forward(layer);
    }
    return bytes;
  }

  // Needed for a while besides: while the head is computed, or in the backward pass of the last block.
  int64_t passing() const {
    const int64_t D = model_.hidden, last = model_.layers - 1;
    const int64_t chunk = std::min(T_, head_chunk_tokens(V_));
    const int64_t head =
        floats(chunk * V_) + (value_bytes_ == 4 ? 0 : values(chunk, V_)) + floats(T_) + 2 * values(T_, D);

    const bool is_moe = model_.is_moe_layer(last);
    const int64_t R = is_moe ? T_ * model_.moe.top_k : T_;
    const int64_t F = is_moe ? model_.moe.expert_hidden : model_.ffn_hidden;
    // Groups are padded to whole blocks for a weight gradient, half a block each on average.
    const int64_t P = blocks(R + (is_moe ? 64 * model_.moe.num_experts : 0)) * 128;
    // The gradient of the residual stream is also that of a dense layer's result; experts have rows of their own, in
    // place of the results that combining has let go.
    int64_t ffn = values(T_, D) + (is_moe ? values(T_, D) : 0);
    if (is_fp8_) {
      ffn += codes(R, 2 * F) + columns(P, 2 * F);  // of the gradient of the inner activation
      // While it is made: its own gradient, the activation, and the output's gradient. Then: the input, or its
      // gradient.
      ffn += std::max({values(R, F) + columns(P, F) + codes(R, D) + columns(P, D), columns(P, D), values(R, D)});
    } else {
      ffn += values(R, F) + values(R, 2 * F) + values(R, D);  // the gradients of the inner activations, of the input
    }
    int64_t attend = 3 * values(T_, D) + values(T_, query_width()) + values(T_, qkv_width());
    if (train_.recomputes(Recompute::kAttention)) attend += attention();
    int64_t block = std::max(ffn, attend);
    if (train_.recomputes(Recompute::kNorm)) block += values(T_, D) + (is_fp8_ ? codes(T_, D) : 0);
    if (train_.recomputes(Recompute::kBlock)) block += attention() + feed_forward(last);
    block -= values(T_, D) + floats(T_);  // the last norm has let its input go
    return std::max(head, block);
  }

 private:
  int64_t values(int64_t rows, int64_t cols) const { return allocated_bytes(rows * cols * value_bytes_); }
  int64_t floats(int64_t n) const { return allocated_bytes(n * 4); }
  // Rows in E4M3 with a float32 scale for each 128 columns.
  int64_t codes(int64_t rows, int64_t cols) const { return allocated_bytes(rows * cols) + floats(rows * blocks(cols)); }
  // Columns of P rows in E4M3 with a float32 scale for each 128 rows.
  int64_t columns(int64_t P, int64_t cols) const { return allocated_bytes(P * cols) + floats(P / 128 * cols); }
  int64_t query_width() const { return model_.heads * model_.head_width(); }
  int64_t qkv_width() const { return (model_.heads + 2 * model_.num_kv_heads()) * model_.head_width(); }

  // What one layer keeps, but for its input.
  int64_t attention() const {
    int64_t bytes = floats(T_) + linear_input(/*values_too=*/false);  // of the norm: 1 / rms, and its output
    bytes += values(T_, qkv_width()) + values(T_, query_width());     // queries, keys, values; the output
    bytes += floats(T_ * model_.heads) + floats(T_);                  // log-sum-exp, positions
    return bytes + (is_fp8_ ? codes(T_, query_width()) : 0);          // the input of the output projection
  }
  int64_t feed_forward(int64_t layer) const {
    const bool is_moe = model_.is_moe_layer(layer);
    // The gate reads the norm's output in high precision.
    int64_t bytes = values(T_, model_.hidden) + floats(T_) + linear_input(/*values_too=*/is_moe);
    if (!is_moe) return bytes + inner(T_, model_.ffn_hidden);
    const MoeConfig& moe = model_.moe;
    const int64_t R = T_ * moe.top_k;
    const int64_t score_tables =
        1 + (moe.aux_loss != AuxLoss::kNone && moe.aux_loss_alpha > 0 ? 1 : 0) + (moe.z_loss_beta > 0 ? 1 : 0);
    bytes += score_tables * floats(T_ * moe.num_experts) + 4 * floats(R);  // choices, weights, and the permutation
    if (moe.shared_experts > 0) bytes += inner(T_, moe.shared_experts * moe.expert_hidden);
    return bytes + inner(R, moe.expert_hidden) + values(R, model_.hidden);  // and the experts' results
  }
  // A norm's output, as the linear layers that read it keep it.
  int64_t linear_input(bool values_too) const {
    if (train_.recomputes(Recompute::kNorm)) return 0;
    if (!is_fp8_) return values(T_, model_.hidden);
    return codes(T_, model_.hidden) + (values_too ? values(T_, model_.hidden) : 0);
  }
  // Inside a SwiGLU layer.
  int64_t inner(int64_t rows, int64_t width) const {
    if (is_fp8_) return codes(rows, 2 * width);
    return values(rows, 2 * width) + (train_.recomputes(Recompute::kSwiglu) ? 0 : values(rows, width));
  }

  const ModelConfig& model_;
  const TrainConfig& train_;
  const bool is_fp8_;
  const int64_t value_bytes_;
  const int64_t T_, V_;
};

}  // namespace

ParameterCounts count_parameters(const ModelConfig& model, int64_t vocab_size) {
  const int64_t D = model.hidden, V = model.vocab_size == 0 ? vocab_size : model.vocab_size;
  const int64_t q = model.heads * model.head_width(), kv = model.num_kv_heads() * model.head_width();
  const int64_t moe_layers = model.num_moe_layers();
  const MoeConfig& moe = model.moe;
  const int64_t expert = 3 * D * moe.expert_hidden;
  ParameterCounts counts;
  counts.embedding = V * D;
  counts.head = model.tied_head ? 0 : V * D;
  counts.attention = model.layers * (D * q + 2 * D * kv + q * D);
  counts.dense_ffn = (model.layers - moe_layers) * 3 * D * model.ffn_hidden;
  counts.routed_experts = moe_layers * moe.num_experts * expert;
  counts.active_routed_experts = moe_layers * moe.top_k * expert;
  counts.shared_experts = moe_layers * moe.shared_experts * expert;
  counts.gates = moe_layers * moe.num_experts * D;
  counts.norms = (2 * model.layers + 1) * D;
  counts.routing_bias = moe_layers * moe.num_experts;
  return counts;
}

double training_flops_per_token(const ModelConfig& model, int64_t vocab_size, int64_t seq_len) {
  const double matmul = 6.0 * double(count_parameters(model, vocab_size).active_matmul());
  return matmul + 6.0 * double(model.layers) * double(model.heads) * double(model.head_width()) * double(seq_len);
}

MemoryEstimate estimate_memory(const Config& config, int64_t vocab_size) {
  MemoryEstimate memory;
  const int64_t moment_bytes = config.precision.moments == MomentType::kBf16 ? 2 : 4;
  visit_parameters(config.model, vocab_size, [&](const ParameterShape& shape) {
    const int64_t n = shape.elements();
    memory.masters += shape.copies * allocated_bytes(4 * n);
    memory.gradients += shape.copies * allocated_bytes(4 * n);
    memory.moments += shape.copies * 2 * allocated_bytes(moment_bytes * n);
    if (shape.kind == ParameterShape::kNorm || config.precision.recipe == Recipe::kFp32) return;
    if (shape.kind == ParameterShape::kLinear && config.precision.recipe == Recipe::kFp8Block) {
      const int64_t scales = shape.groups * blocks(shape.rows) * blocks(shape.cols);
      memory.weights += shape.copies * (allocated_bytes(n) + allocated_bytes(4 * scales));
      memory.saving += shape.copies * allocated_bytes(2 * n);
    } else {
      memory.weights += shape.copies * allocated_bytes(2 * n);
    }
  });
  // The rotary table reaches as far as the longest sequence, and a router holds its bias and its last load.
  const int64_t sample = int64_t(config.train.sample_prompt.size()) + 1 + config.train.sample_tokens;
  memory.weights += allocated_bytes(4 * std::max(config.data.seq_len, sample) * config.model.head_width());
  memory.weights += 2 * config.model.num_moe_layers() * allocated_bytes(4 * config.model.moe.num_experts);
  const Activations activations(config, vocab_size);
  memory.activations = activations.kept();
  memory.workspace = activations.passing();
  return memory;
}

CheckpointSize checkpoint_size(const Config& config, int64_t vocab_size) {
  const int64_t moment_bytes = config.precision.moments == MomentType::kBf16 ? 2 : 4;
  CheckpointSize size;
  visit_parameters(config.model, vocab_size, [&](const ParameterShape& shape) {
    const bool is_master = shape.kind == ParameterShape::kNorm || config.precision.recipe == Recipe::kFp32;
    size.tensors += shape.copies * shape.pieces * (is_master ? 3 : 4);
    size.bytes += shape.copies * shape.elements() * ((is_master ? 4 : 2 + 4) + 2 * moment_bytes);
  });
  size.tensors += 2 * config.model.num_moe_layers();
  size.bytes += 2 * 4 * config.model.num_moe_layers() * config.model.moe.num_experts;
  return size;
}

}  // namespace octet
