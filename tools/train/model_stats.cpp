#include "tools/train/model_stats.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "core/nn/attention_layer.h"
#include "core/ops/head_loss.h"
#include "core/tensor/allocator.h"
#include "parallel/communicator.h"
#include "parallel/device_dispatcher.h"
#include "parallel/parameter_shards.h"

namespace octet {
namespace {

int64_t blocks(int64_t n) { return (n + 127) / 128; }

bool is_fp8(const PrecisionConfig& precision, const ProductLayer& layer) {
  return recipe_of(precision.recipe, precision.products, layer) == Recipe::kFp8Block;
}

// The parameters of a rank as core/nn makes them, with shapes and no memory.
class Shapes {
 public:
  Shapes(const Config& config, int64_t vocab_size) {
    const ModelConfig& model = config.model;
    const MoeConfig& moe = model.moe;
    const Recipe recipe = config.precision.recipe;
    const auto form_of = [&](const ProductLayer& layer) {
      return linear_form(recipe_of(recipe, config.precision.products, layer));
    };
    const WeightForm high = high_precision_form(recipe), experts = form_of(kExperts);
    const int64_t D = model.hidden, V = model.vocab_size == 0 ? vocab_size : model.vocab_size;
    const int64_t q = model.heads * model.head_width(), kv = model.num_kv_heads() * model.head_width();
    const int64_t E = moe.num_experts, X = moe.expert_hidden, at_hand = E / config.parallel.ep;
    const auto begin_unit = [this] { units_.emplace_back(); };
    const auto add = [this](const Shape& shape, WeightForm form, int64_t names = 1, AxisCut cut = {}) {
      all_.push_back(
          std::make_unique<Parameter>("", shape, form, /*decays=*/true, Device{}, std::vector<WeightPiece>(), cut));
      units_.back().push_back(all_.back().get());
      names_.push_back(names);
    };
    const auto swiglu = [&](int64_t width, WeightForm form) { add({2 * width, D}, form, 2), add({D, width}, form); };
    begin_unit();
    add({V, D}, high);
    for (int64_t layer = 0; layer < model.layers; ++layer) {
      begin_unit();
      add({D}, WeightForm::kFloat32);
      add({q + 2 * kv, D}, form_of(kQkvProj), 3), add({D, q}, form_of(kOProj));
      add({D}, WeightForm::kFloat32);
      if (!model.is_moe_layer(layer)) {
        swiglu(model.ffn_hidden, form_of(kDense));
        continue;
      }
      add({E, D}, high);
      add({at_hand, 2 * X, D}, experts, 2 * at_hand, {0, E}), add({at_hand, D, X}, experts, at_hand, {0, E});
      if (moe.shared_experts > 0) swiglu(moe.shared_experts * X, form_of(kSharedExperts));
    }
    begin_unit();
    add({D}, WeightForm::kFloat32);
    if (!model.tied_head) add({V, D}, high);
  }

  const std::vector<std::vector<Parameter*>>& units() const { return units_; }
  const std::vector<std::unique_ptr<Parameter>>& all() const { return all_; }
  const std::vector<int64_t>& names() const { return names_; }  // of each of them, on disk

 private:
  std::vector<std::unique_ptr<Parameter>> all_;
  std::vector<int64_t> names_;
  std::vector<std::vector<Parameter*>> units_;  // as Transformer::units()
};

// Those who hold the same parameters, of a rank: all for the dense ones, dp / ep for experts.
struct Holders {
  bool cut;
  int64_t ranks, me;
};
std::array<Holders, 2> holders(const ParallelConfig& parallel, int64_t rank) {
  return {Holders{false, parallel.dp, rank}, Holders{true, parallel.dp / parallel.ep, rank / parallel.ep}};
}

// How the dispatch of a run is laid out.
struct DispatchShape {
  explicit DispatchShape(const Config& config)
      : ranks(config.parallel.ep),
        of_node(config.parallel.ranks_per_node == 0 ? ranks : std::min(ranks, config.parallel.ranks_per_node)),
        nodes(ranks / of_node),
        on_gpus(config.device != DeviceType::kCpu) {
    two_stage = config.parallel.wants_two_stages(config.model.moe) && nodes > 1 && of_node > 1;
    const MoeConfig& moe = config.model.moe;
    if (on_gpus && ranks > 1 && moe.num_experts > 0) {
      const int64_t tokens = config.sequences_per_micro_batch() * config.data.seq_len;
      room = dispatch_room(tokens, moe.top_k, moe.num_experts, ranks, two_stage ? of_node : ranks,
                           config.parallel.dispatch_bound);
    }
  }
  int64_t ranks, of_node, nodes;  // P = N L
  bool on_gpus, two_stage;
  DispatchRoom room;  // on GPUs, of a message
};

// The activations of T tokens, in bytes as they are allocated.
class Activations {
 public:
  Activations(const Config& config, int64_t vocab_size)
      : model_(config.model),
        train_(config.train),
        qkv_fp8_(is_fp8(config.precision, kQkvProj)),
        o_fp8_(is_fp8(config.precision, kOProj)),
        dense_fp8_(is_fp8(config.precision, kDense)),
        shared_fp8_(config.model.moe.shared_experts > 0 && is_fp8(config.precision, kSharedExperts)),
        experts_fp8_(is_fp8(config.precision, kExperts)),
        by_tiles_(config.precision.has_wgrad_tiles()),
        value_bytes_(config.precision.recipe == Recipe::kFp32 ? 4 : 2),
        T_(config.sequences_per_micro_batch() * config.data.seq_len),
        V_(config.model.vocab_size == 0 ? vocab_size : config.model.vocab_size),
        interleave_(config.parallel.interleave),
        ep_(config.parallel.ep),
        dispatch_(config) {
    rows_ = T_ * model_.moe.top_k;
    if (!is_spread()) return;
    if (dispatch_.on_gpus) {
      copies_ = ep_ * dispatch_.room.copies, rows_ = ep_ * dispatch_.room.rows;
      if (dispatch_.two_stage) node_copies_ = dispatch_.nodes * dispatch_.room.node_copies;
      return;
    }
    const double tokens = double(T_), of_rank = chance_of_visit(model_.moe, model_.moe.num_experts / ep_);
    copies_ = int64_t(std::ceil(tokens * double(ep_) * of_rank));
    if (!dispatch_.two_stage) return;
    const int64_t of_node = model_.moe.num_experts / dispatch_.nodes;
    node_copies_ = int64_t(std::ceil(tokens * double(dispatch_.nodes) * chance_of_visit(model_.moe, of_node)));
  }

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
    return interleave_ * bytes;
  }

  // Needed for a while besides: while the head is computed, or in the backward pass of the last block.
  int64_t passing() const {
    const int64_t D = model_.hidden, last = model_.layers - 1;
    const int64_t chunk = std::min(T_, head_chunk_tokens(V_));
    const int64_t head =
        floats(chunk * V_) + (value_bytes_ == 4 ? 0 : values(chunk, V_)) + floats(T_) + 2 * values(T_, D);

    const bool is_moe = model_.is_moe_layer(last);
    const int64_t R = is_moe ? rows_ : T_;
    const int64_t F = is_moe ? model_.moe.expert_hidden : model_.ffn_hidden;
    // Groups are padded to whole blocks for a weight gradient, half a block each on average; on a GPU, whose host does
    // not know how much, by all that it can be.
    const int64_t padding = dispatch_.on_gpus ? 127 : 64;
    const int64_t P = blocks(R + (is_moe ? padding * model_.moe.num_experts / ep_ : 0)) * 128;
    // The gradient of the residual stream is also that of a layer's result; tokens from elsewhere bring theirs.
    const int64_t results = is_moe ? (is_spread() ? copies_ : T_) : R;
    int64_t ffn = values(T_, D) + (is_moe ? values(T_, D) : 0) + (is_moe && is_spread() ? values(copies_, D) : 0);
    if (is_moe ? experts_fp8_ : dense_fp8_) {
      // While it is made: its own gradient, the activation, and the output's gradient. Then: the input, or its
      // gradient.
      const int64_t inner_columns = columns(P, 2 * F), let_go = codes(R, 2 * F);  // what was kept of it
      const int64_t result = codes(results, D) + columns(P, F), result_columns = columns(P, D);
      ffn += codes(R, 2 * F);  // of the gradient of the inner activation
      if (by_tiles_) {
        // Tiles are made of rows, those of the activation first, whose rows then go.
        const int64_t rows = codes(results, D);
        ffn += std::max({values(R, F) + rows + codes(R, F), rows + codes(R, F) + tiles(P, F) - let_go,
                         rows + tiles(P, F) + tiles(P, D) - let_go, tiles(P, 2 * F) + tiles(P, D) - let_go,
                         values(R, D) - let_go});
      } else {
        // Those that experts read through an index have their columns made when the inner gradient is gone.
        ffn += std::max({inner_columns + values(R, F) + result + (is_moe ? 0 : result_columns),
                         inner_columns + result + result_columns - let_go, inner_columns + columns(P, D) - let_go,
                         values(R, D) - let_go});
      }
    } else {
      // The same, but that experts read the output's gradient in rows of their own.
      ffn += values(R, 2 * F) + std::max(values(R, F) + (is_moe ? values(R, D) : 0), values(R, D));
    }
    int64_t attend = 3 * values(T_, D) + values(T_, query_width()) + values(T_, qkv_width());
    if (train_.recomputes(Recompute::kAttention)) attend += attention();
    int64_t block = std::max(ffn, attend);
    if (train_.recomputes(Recompute::kNorm)) {
      const bool has_codes = qkv_fp8_ || (is_moe ? experts_fp8_ || shared_fp8_ : dense_fp8_);
      block += (has_codes ? codes(T_, D) : 0) + (is_moe || !dense_fp8_ ? values(T_, D) : 0);  // the router reads values
    }
    if (train_.recomputes(Recompute::kBlock)) block += attention() + feed_forward(last);
    if (is_moe && is_spread()) {
      // While the gradients of tokens go back: rows as the experts made them, those that come from elsewhere, and those
      // that leave, where they leave together.
      const int64_t others = dispatch_.on_gpus ? R : R * (ep_ - 1) / ep_;
      const bool is_gathered = dispatch_.on_gpus || R / model_.moe.num_experts * D * value_bytes_ < kPartBytes;
      const int64_t let_go = inner(R, F, experts_fp8_) + received();
      block = std::max(block, 2 * values(T_, D) + values(R, D) + (is_gathered ? 2 : 1) * values(others, D) - let_go);
    }
    block -= values(T_, D) + floats(T_);  // the last norm has let its input go
    // Of the other micro-batches, the gradients of what the head read.
    return std::max(head, block) + (interleave_ - 1) * values(T_, D);
  }

 private:
  int64_t values(int64_t rows, int64_t cols) const { return allocated_bytes(rows * cols * value_bytes_); }
  int64_t floats(int64_t n) const { return allocated_bytes(n * 4); }
  // Rows in E4M3 with a float32 scale for each 128 columns.
  int64_t codes(int64_t rows, int64_t cols) const { return allocated_bytes(rows * cols) + floats(rows * blocks(cols)); }
  // Columns of P rows in E4M3 with a float32 scale for each 128 rows.
  int64_t columns(int64_t P, int64_t cols) const { return allocated_bytes(P * cols) + floats(P / 128 * cols); }
  // The same with a scale for each 128 rows and columns.
  int64_t tiles(int64_t P, int64_t cols) const { return allocated_bytes(P * cols) + floats(P / 128 * blocks(cols)); }
  int64_t query_width() const { return model_.heads * model_.head_width(); }
  int64_t qkv_width() const { return (model_.heads + 2 * model_.num_kv_heads()) * model_.head_width(); }

  // What one layer keeps, but for its input.
  int64_t attention() const {
    int64_t bytes = floats(T_) + linear_input(!qkv_fp8_, qkv_fp8_);  // of the norm: 1 / rms, and its output
    bytes += values(T_, qkv_width()) + values(T_, query_width());    // queries, keys, values; the output
    bytes += floats(T_ * model_.heads) + floats(T_);                 // log-sum-exp, positions
    return bytes + (o_fp8_ ? codes(T_, query_width()) : 0);          // the input of the output projection
  }
  int64_t feed_forward(int64_t layer) const {
    const bool is_moe = model_.is_moe_layer(layer);
    // The gate reads the norm's output in high precision; experts elsewhere read what is sent to them.
    const bool reads_codes = is_moe ? (!is_spread() && experts_fp8_) || shared_fp8_ : dense_fp8_;
    int64_t bytes = values(T_, model_.hidden) + floats(T_) + linear_input(is_moe || !dense_fp8_, reads_codes);
    if (!is_moe) return bytes + inner(T_, model_.ffn_hidden, dense_fp8_);
    const MoeConfig& moe = model_.moe;
    const int64_t pairs = T_ * moe.top_k, R = rows_;
    const int64_t score_tables =
        1 + (moe.aux_loss != AuxLoss::kNone && moe.aux_loss_alpha > 0 ? 1 : 0) + (moe.z_loss_beta > 0 ? 1 : 0);
    // Choices, weights, and the permutation; and the weight of each row.
    bytes += score_tables * floats(T_ * moe.num_experts) + 4 * floats(pairs) + floats(R);
    if (is_spread() && dispatch_.on_gpus) {
      // The lists of kernels/rank_rows.h.
      bytes += received() - floats(pairs) + 2 * floats(R) + floats(copies_) + floats(node_copies_);
    } else if (is_spread()) {
      // What came, and where everything goes: a number or two for each row and for each copy.
      bytes += received() + 2 * floats(R) + floats(copies_);
      if (dispatch_.two_stage) bytes += 3 * floats(node_copies_);
      bytes += 2 * allocated_bytes(8 * (moe.num_experts + 2 * ep_));
    }
    if (moe.shared_experts > 0) bytes += inner(T_, moe.shared_experts * moe.expert_hidden, shared_fp8_);
    return bytes + inner(R, moe.expert_hidden, experts_fp8_);
  }
  // A norm's output, as the linear layers that read it keep it.
  int64_t linear_input(bool values_too, bool codes_too) const {
    if (train_.recomputes(Recompute::kNorm)) return 0;
    return (codes_too ? codes(T_, model_.hidden) : 0) + (values_too ? values(T_, model_.hidden) : 0);
  }
  // Tokens as they came to the experts here; from as many tokens elsewhere as are here.
  int64_t received() const { return experts_fp8_ ? codes(copies_, model_.hidden) : values(copies_, model_.hidden); }
  bool is_spread() const { return ep_ > 1 && model_.num_moe_layers() > 0; }
  // Inside a SwiGLU layer.
  int64_t inner(int64_t rows, int64_t width, bool in_fp8) const {
    if (in_fp8) return codes(rows, 2 * width);
    return values(rows, 2 * width) + (train_.recomputes(Recompute::kSwiglu) ? 0 : values(rows, width));
  }

  const ModelConfig& model_;
  const TrainConfig& train_;
  const bool qkv_fp8_, o_fp8_, dense_fp8_, shared_fp8_, experts_fp8_, by_tiles_;
  const int64_t value_bytes_;
  const int64_t T_, V_, interleave_, ep_;
  const DispatchShape dispatch_;
  int64_t copies_ = 0, node_copies_ = 0;  // of this rank's tokens: to ranks, and to nodes
  int64_t rows_ = 0;                      // of experts here
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

MemoryEstimate estimate_memory(const Config& config, int64_t vocab_size, int64_t rank) {
  MemoryEstimate memory;
  const int64_t moment_bytes = config.precision.moments == MomentType::kBf16 ? 2 : 4;
  const Shapes shapes(config, vocab_size);
  const size_t last_unit = shapes.units().size() - 1;
  // Of a parameter's own rows.
  const auto add_own = [&](const Parameter& parameter, int64_t rows) {
    const int64_t n = rows * parameter.shape().cols();
    if (parameter.form() != WeightForm::kFloat32) memory.masters += allocated_bytes(4 * n);
    memory.moments += 2 * allocated_bytes(moment_bytes * n);
    if (parameter.form() == WeightForm::kFp8Block) memory.saving += allocated_bytes(2 * n);
  };
  // Of what lies in one piece by kind.
  const auto add_weights = [&](const ShardCounts& elements) {
    for (size_t kind = 0; kind < kShardKinds; ++kind) {
      if (elements[kind] == 0) continue;
      const int64_t bytes = allocated_bytes(elements[kind] * size_of(kShardDTypes[kind]));
      (kind == kShardGrad ? memory.gradients : kind == kShardFloat32 ? memory.masters : memory.weights) += bytes;
    }
  };
  for (const Holders& of : holders(config.parallel, rank)) {
    if (of.ranks == 1) {
      for (const auto& parameter : shapes.all()) {
        if (parameter->is_cut() != of.cut) continue;
        add_own(*parameter, parameter->num_rows());
        add_weights(shard_elements(*parameter, parameter->num_rows()));
      }
      continue;
    }
    plan_buckets(shapes.units(), of.cut, of.ranks, of.me, {}, [&](const BucketPlan& plan) {
      add_weights(plan.elements);
      for (size_t i = 0; i < plan.parameters.size(); ++i) {
        const Parameter& parameter = *plan.parameters[i];
        // A vector is one row, and a rank without it has an empty tensor.
        add_own(parameter, plan.own[i].rows);
      }
      const int64_t mine = plan.of_rank[kShardGrad][size_t(of.me)];
      // At the widest point, the backward pass of the last block, only the last unit is complete.
      if (plan.first_unit == last_unit) memory.reduction += allocated_bytes(4 * mine * (of.ranks - 1));
    });
  }
  if (config.num_micro_batches() / config.parallel.dp > 1) {
    const kernels::Emulation emulation = emulation_on(Device{.type = config.device}, config.precision.emulation);
    for (const auto& parameter : shapes.all()) {
      if (!parameter->is_read_transposed(config.device, emulation)) continue;
      memory.transposed += allocated_bytes(parameter->shape().num_elements());
    }
  }
  // The rotary table reaches as far as the longest sequence, and a router holds its bias and its last load.
  const int64_t sample = int64_t(config.train.sample_prompt.size()) + 1 + config.train.sample_tokens;
  memory.weights += allocated_bytes(4 * std::max(config.data.seq_len, sample) * config.model.head_width());
  memory.weights += 2 * config.model.num_moe_layers() * allocated_bytes(4 * config.model.moe.num_experts);
  const Activations activations(config, vocab_size);
  memory.activations = activations.kept();
  memory.workspace = activations.passing();
  return memory;
}

int64_t fullest_rank(const Config& config, int64_t vocab_size) {
  const Shapes shapes(config, vocab_size);
  std::vector<int64_t> elements(size_t(config.parallel.dp), 0);
  for (const Holders& of : holders(config.parallel, 0)) {
    const int64_t ranks_each = config.parallel.dp / of.ranks;
    plan_buckets(shapes.units(), of.cut, of.ranks, 0, {}, [&](const BucketPlan& plan) {
      for (int64_t r = 0; r < config.parallel.dp; ++r) {
        elements[size_t(r)] += plan.of_rank[kShardGrad][size_t(r / ranks_each)];
      }
    });
  }
  return std::max_element(elements.begin(), elements.end()) - elements.begin();
}

double chance_of_visit(const MoeConfig& moe, int64_t here) {
  // Of n things m are drawn; the chance that none is among k given ones.
  const auto none_of = [](int64_t n, int64_t m, int64_t k) {
    double chance = 1;
    for (int64_t i = 0; i < m; ++i) chance *= std::max(0.0, double(n - k - i) / double(n - i));
    return chance;
  };
  const int64_t of_group = moe.num_experts / moe.num_groups, G = moe.num_groups, kept = moe.kept_groups;
  const int64_t groups_here = (here + of_group - 1) / of_group, each = here / groups_here;
  // Over how many of the groups here are kept: chances of 0, 1, ..., a group at a time.
  std::vector<double> chances(size_t(groups_here) + 1, 0.0);
  chances[0] = 1;
  for (int64_t g = 0; g < groups_here; ++g) {
    for (int64_t j = g + 1; j >= 0; --j) {
      // The next group is kept with the share of keeping that is left.
      const auto keeps = [&](int64_t so_far) { return std::clamp(double(kept - so_far) / double(G - g), 0.0, 1.0); };
      double& chance = chances[size_t(j)];
      chance *= 1 - keeps(j);
      if (j > 0) chance += chances[size_t(j - 1)] * keeps(j - 1);
    }
  }
  double visit = 0;
  for (int64_t j = 1; j <= groups_here; ++j) {
    visit += chances[size_t(j)] * (1 - none_of(kept * of_group, moe.top_k, j * each));
  }
  return visit;
}

WireBytes wire_bytes(const Config& config, int64_t vocab_size, int64_t rank) {
  WireBytes wire;
  const ParallelConfig& parallel = config.parallel;
  const ModelConfig& model = config.model;
  const Shapes shapes(config, vocab_size);
  const int64_t dp = parallel.dp, per_node = parallel.ranks_per_node == 0 ? dp : std::min(dp, parallel.ranks_per_node);
  int64_t slabs = 0;
  for (const auto& parameter : shapes.all()) {
    slabs += parameter->is_cut() ? parameter->slabs_of_matrix() * parameter->cut().total : parameter->num_slabs();
  }
  for (const Holders& of : holders(parallel, rank)) {
    if (of.ranks == 1) continue;
    // The ranks that hold the same experts are ep apart.
    const int64_t apart = dp / of.ranks, node = rank / per_node;
    plan_buckets(shapes.units(), of.cut, of.ranks, of.me, {}, [&](const BucketPlan& plan) {
      for (int kind = 0; kind < kShardKinds; ++kind) {
        const auto size = double(size_of(kShardDTypes[kind]));
        const std::vector<int64_t>& counts = plan.of_rank[size_t(kind)];
        for (int64_t other = 0; other < of.ranks; ++other) {
          if (other == of.me) continue;
          const double off_node = (other * apart + rank % apart) / per_node == node ? 0 : 1;
          if (kind == kShardGrad) {
            wire.reduce.add(size * double(counts[size_t(other)]), off_node);
          } else {
            wire.gather.add(size * double(counts[size_t(of.me)]), off_node);
          }
        }
      }
    });
  }
  if (dp > 1) {
    const double off_node = double(dp - per_node) / double(dp - 1);
    int64_t values = kStepSums + slabs + config.num_micro_batches() + model.num_moe_layers() * model.moe.num_experts;
    for (const auto& parameter : shapes.all()) {
      // What tiles have lost of each operand, and of how many codes.
      if (config.precision.has_wgrad_tiles() && parameter->form() == WeightForm::kFp8Block) values += 4;
    }
    const int64_t mine = values * (rank + 1) / dp - values * rank / dp;
    const int64_t sent = 8 * values <= kWholeReduceBytes ? values * (dp - 1) : values - mine + mine * (dp - 1);
    wire.sums.add(8 * double(sent), off_node);
  }
  if (parallel.ep == 1 || model.num_moe_layers() == 0) return wire;

  const DispatchShape shape(config);
  wire.two_stage = shape.two_stage;
  const auto P = double(shape.ranks), N = double(shape.nodes), L = double(shape.of_node);
  const auto T = double(config.sequences_per_micro_batch() * config.data.seq_len), D = double(model.hidden);
  const double value_row = D * (config.precision.recipe == Recipe::kFp32 ? 4 : 2);
  const double code_row = D + 4 * double(blocks(model.hidden));
  const bool experts_fp8 = is_fp8(config.precision, kExperts);
  const double token = experts_fp8 && parallel.wire == Wire::kFp8 ? code_row : value_row;
  const double gradient = experts_fp8 && config.precision.expert_gradients == GradientWire::kFp8 ? code_row : value_row;
  const int64_t E = model.moe.num_experts;
  const double rows = T * double(model.moe.top_k) * (P - 1) / P, off_rank = (P - L) / (P - 1);
  const double visit = chance_of_visit(model.moe, E / shape.ranks);
  const double node_visit = chance_of_visit(model.moe, E / shape.nodes);
  const double passes = double(model.num_moe_layers() * config.num_micro_batches() / dp);
  const double forward = passes * (config.train.recomputes(Recompute::kBlock) ? 2 : 1);  // what is sent again
  if (shape.on_gpus) {
    const double others = P - 1, room = double(shape.room.rows), copies = double(shape.room.copies);
    const double to_nodes = (N - 1) * double(shape.room.node_copies);
    const auto out = [&](WireBytes::Line& line, double times, double bytes) {
      if (shape.two_stage) {
        line.add(times * bytes * to_nodes, 1);
        line.add(times * bytes * (L - 1) * N * copies, 0);
      } else {
        line.add(times * bytes * others * copies, off_rank);
      }
    };
    wire.counts.add(forward * others * (8 * P + 4 * (double(E) / P + room)), off_rank);
    if (shape.two_stage) wire.counts.add(forward * 8 * to_nodes, 1);
    out(wire.tokens_out, forward, token);
    wire.tokens_out.add(forward * others * 4 * room, off_rank);
    wire.rows_back.add(forward * others * room * value_row, off_rank);
    out(wire.gradients_out, passes, gradient);
    wire.gradients_back.add(passes * others * room * (value_row + 4), off_rank);
    return wire;
  }
  const auto out = [&](WireBytes::Line& line, double times, double bytes) {
    if (shape.two_stage) {
      line.add(times * bytes * T * (N - 1) * node_visit, 1);
      line.add(times * bytes * T * N * (L - 1) * visit, 0);
    } else {
      line.add(times * bytes * T * (P - 1) * visit, off_rank);
    }
  };
  wire.counts.add(forward * 8 * (double(E) / P + 2) * (P - 1), off_rank);
  if (shape.two_stage) wire.counts.add(forward * 8 * T * (N - 1) * node_visit, 1);
  out(wire.tokens_out, forward, token);
  wire.tokens_out.add(forward * 8 * rows, off_rank);  // which token each row reads, and its weight
  wire.rows_back.add(forward * rows * value_row, off_rank);
  out(wire.gradients_out, passes, gradient);
  wire.gradients_back.add(passes * rows * (value_row + 4), off_rank);  // and those of the weights
  return wire;
}

CheckpointSize checkpoint_size(const Config& config, int64_t vocab_size) {
  const int64_t moment_bytes = config.precision.moments == MomentType::kBf16 ? 2 : 4;
  Config one_rank = config;
  one_rank.parallel.ep = 1;
  const Shapes shapes(one_rank, vocab_size);
  CheckpointSize size;
  for (size_t i = 0; i < shapes.all().size(); ++i) {
    const Parameter& parameter = *shapes.all()[i];
    const bool is_master = parameter.form() == WeightForm::kFloat32;
    size.tensors += shapes.names()[i] * (is_master ? 3 : 4);
    size.bytes += parameter.shape().num_elements() * ((is_master ? 4 : 2 + 4) + 2 * moment_bytes);
  }
  size.tensors += 2 * config.model.num_moe_layers();
  size.bytes += 2 * 4 * config.model.num_moe_layers() * config.model.moe.num_experts;
  return size;
}

}  // namespace octet
