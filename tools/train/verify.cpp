#include "tools/train/verify.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "core/tensor/transfer.h"
#include "kernels/elementwise.h"
#include "parallel/parallelize.h"
#include "tools/data/made_up_batch.h"
#include "tools/train/device.h"
#include "tools/train/training_step.h"

namespace octet {
namespace {

// Micro-batch m of a step.
Batch fetch(const Config& config, int64_t step, int64_t m) {
  return made_up_batch(uint64_t(config.train.seed), step * config.num_micro_batches() + m,
                       config.sequences_per_micro_batch(), config.data.seq_len, config.model.vocab_size);
}

void append(Batch& batch, const Batch& more) {
  batch.num_samples += more.num_samples;
  batch.inputs.insert(batch.inputs.end(), more.inputs.begin(), more.inputs.end());
  batch.targets.insert(batch.targets.end(), more.targets.begin(), more.targets.end());
}

bool is_expert(const Parameter& parameter) { return parameter.shape().rank() == 3; }

class Reference {
 public:
  Reference(const Config& config, Communicator& world, Device device)
      : config_(config),
        world_(world),
        model_(config.model, config.precision, RecomputeParts{}, config.data.seq_len,
               std::make_unique<LocalDispatcher>(), device),
        optimizer_(model_.parameters(), config.optim, moments_dtype(config.precision)) {
    model_.init_weights(uint64_t(config.train.seed));
  }

  // Gradients of a step.
  StepSums compute(int64_t step) {
    const ParallelConfig& parallel = config_.parallel;
    StepPlan plan = plan_step(config_, 0);
    const int64_t of_rank = plan.count;
    plan.first = 0, plan.count = plan.micro_batches, plan.interleave = 1;
    std::vector<Tensor> of_experts;
    Tensor lost;  // of tiles, in the joined micro-batches
    if (parallel.ep > 1) {
      StepPlan joined = plan;
      joined.sequences *= parallel.ep;
      joined.micro_batches = joined.count = plan.micro_batches / parallel.ep;
      joined.groups = parallel.dp / parallel.ep;
      model_.context().balance_parts = parallel.ep;
      const StepLosses unused(joined, model_.context().device);
      const auto joined_tokens = [&](int64_t m) {
        world_.progress();
        const int64_t first_rank = m / of_rank * parallel.ep, of_each = m % of_rank;
        Batch batch = fetch(config_, step, first_rank * of_rank + of_each);
        for (int64_t r = 1; r < parallel.ep; ++r) {
          append(batch, fetch(config_, step, (first_rank + r) * of_rank + of_each));
        }
        return tokens_on(model_.context().device, batch);
      };
      run_micro_batches(model_, joined, joined_tokens, unused);
      model_.context().balance_parts = 1;
      for (Parameter* parameter : model_.parameters()) {
        if (!is_expert(*parameter)) continue;
        of_experts.push_back(empty_like(parameter->grad()));
        kernels::cast({.x = parameter->grad(), .y = of_experts.back()}, parameter->grad().stream());
      }
      if (WgradTiles* tiles = model_.wgrad_tiles()) {
        lost = empty_like(tiles->counts());
        copy(tiles->counts(), lost);
      }
      optimizer_.clear_gradients();
    }
    plan.groups = parallel.dp;
    losses_.emplace(plan, model_.context().device);
    const auto tokens_of = [&](int64_t m) {
      world_.progress();
      return tokens_on(model_.context().device, fetch(config_, step, m));
    };
    run_micro_batches(model_, plan, tokens_of, *losses_);
    auto next = of_experts.begin();
    for (Parameter* parameter : model_.parameters()) {
      if (next == of_experts.end() || !is_expert(*parameter)) continue;
      kernels::cast({.x = *next++, .y = parameter->grad()}, parameter->grad().stream());
    }
    if (lost.is_defined()) {
      WgradTiles& tiles = *model_.wgrad_tiles();
      for (size_t i = 0; i < tiles.weights().size(); ++i) {
        if (!is_expert(*tiles.weights()[i])) continue;
        copy(lost.slice_rows(int64_t(i), 1), tiles.counts().slice_rows(int64_t(i), 1));
      }
    }
    optimizer_.measure();
    return sum_step(model_, optimizer_, plan, *losses_);
  }
  void update(int64_t step) {
    optimizer_.prepare(step, config_.optim.lr);
    apply_update(model_, optimizer_, *losses_, nullptr);
  }

  Transformer& model() { return model_; }

 private:
  const Config& config_;
  Communicator& world_;
  Transformer model_;
  AdamW optimizer_;
  std::optional<StepLosses> losses_;
};

// Compares rows with those of the reference, and names what it finds.
class Comparison {
 public:
  Comparison(const char* what, int64_t step, LayoutResult& result, int64_t& different, double& worst)
      : what_(what), step_(step), result_(result), different_(different), worst_(worst) {}

  // rows: of parameter `wanted`, from global row `first` on.
  void rows(const Parameter& parameter, const Tensor& wanted, int64_t first, const Tensor& rows) {
    const int64_t cols = parameter.shape().cols();
    for (const WeightPiece& piece : parameter.pieces()) {
      const int64_t begin = std::max(first, piece.first_row);
      const int64_t end = std::min(first + rows.num_elements() / cols, piece.first_row + piece.rows);
      if (begin >= end) continue;
      const float* a = rows.data<float>() + (begin - first) * cols;
      const float* b = wanted.data<float>() + begin * cols;
      compare(piece, begin - piece.first_row, a, b, (end - begin) * cols, cols);
    }
  }

 private:
  void compare(const WeightPiece& piece, int64_t first_row, const float* a, const float* b, int64_t n, int64_t cols) {
    if (std::memcmp(a, b, size_t(n) * sizeof(float)) == 0) return;
    if (piece.name != last_) ++different_;
    last_ = piece.name;
    double largest = 0, difference = 0;
    int64_t at = -1;
    for (int64_t i = 0; i < n; ++i) {
      largest = std::max(largest, double(std::abs(b[i])));
      difference = std::max(difference, std::abs(double(a[i]) - double(b[i])));
      if (at < 0 && std::memcmp(a + i, b + i, sizeof(float)) != 0) at = i;
    }
    worst_ = std::max(worst_, difference / std::max(largest, 1e-30));
    if (!result_.first_difference.empty()) return;
    result_.first_difference = fmt::format("step {}, {} of {}: {} at [{}, {}], and {} on one rank", step_, what_,
                                           piece.name, a[at], first_row + at / cols, at % cols, b[at]);
  }

  const char* what_;
  int64_t step_;
  LayoutResult& result_;
  int64_t& different_;
  double& worst_;
  std::string last_;  // a tensor may come in several parts
};

// Brings own rows of all ranks, which own_rows_of has on the host, to rank 0, parameter by parameter, rank by rank:
// receive(parameter, first row of the whole tensor, rows).
void bring_own_rows(Communicator& world, const std::vector<Parameter*>& parameters, auto&& own_rows_of,
                    auto&& receive) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& parameter = *parameters[i];
    std::vector<int64_t> ranges(size_t(2 * world.size()));
    const std::vector<int64_t> mine = {parameter.cut().first * parameter.rows_of_matrix() + parameter.own().first,
                                       parameter.own().rows};
    const Tensor all = empty({world.size(), 2}, DType::kInt64, MemoryCategory::kWorkspace);
    world.all_gather(from_vector(mine, {1, 2}), all, default_stream());
    if (world.rank() != 0) {
      if (mine[1] > 0) world.send(own_rows_of(i), 0, default_stream());
      continue;
    }
    for (int r = 0; r < world.size(); ++r) {
      const int64_t first = all.data<int64_t>()[2 * r], rows = all.data<int64_t>()[2 * r + 1];
      if (rows == 0) continue;
      Tensor came = r == 0 ? own_rows_of(i) : Tensor();
      if (r != 0) {
        came = empty({rows, parameter.shape().cols()}, DType::kFloat32, MemoryCategory::kWorkspace);
        world.receive(came, r, default_stream());
      }
      receive(i, first, came);
    }
  }
}

}  // namespace

LayoutResult verify_layout(const Config& config, int64_t steps, Communicator& host_world) {
  const Device device = open_device(config.device);
  const auto of_gpus = make_gpu_communicator(&host_world, device, config.parallel);
  Communicator& world = of_gpus ? *of_gpus : host_world;
  const Ranks ranks(world, config.parallel, config.model, device);
  Transformer model(config.model, config.precision, recompute_parts(config.train), config.data.seq_len,
                    ranks.make_dispatcher(), device);
  const auto shards = ranks.shard(model);
  AdamW optimizer(model.parameters(), config.optim, moments_dtype(config.precision), &world);
  model.init_weights(uint64_t(config.train.seed));
  shards->gather_weights();
  std::optional<Reference> reference;
  if (world.rank() == 0) reference.emplace(config, world, device);
  const std::vector<Parameter*> parameters = model.parameters();
  const std::vector<Parameter*> of_reference =
      reference ? reference->model().parameters() : std::vector<Parameter*>(parameters.size());

  LayoutResult result;
  for (int64_t step = 1; step <= steps; ++step) {
    const StepSums wanted = reference ? reference->compute(step) : StepSums();
    const StepRanks together{.world = &world, .shards = shards.get()};
    const StepPlan plan = plan_step(config, world.rank());
    const StepLosses losses(plan, device);
    optimizer.prepare(step, config.optim.lr);
    run_micro_batches(
        model, plan, [&](int64_t m) { return tokens_on(device, fetch(config, step, m)); }, losses, together);
    optimizer.measure();
    const StepSums sums = sum_step(model, optimizer, plan, losses, together);
    Comparison gradients("gradient", step, result, result.gradients_different, result.worst_gradient);
    bring_own_rows(
        world, parameters, [&](size_t i) { return on_host(parameters[i]->own_rows_of(parameters[i]->grad())); },
        [&](size_t i, int64_t first, const Tensor& rows) {
          gradients.rows(*of_reference[i], on_host(of_reference[i]->grad()), first, rows);
        });
    apply_update(model, optimizer, losses, nullptr, together);
    if (reference) {
      reference->update(step);
      const bool is_loss_equal = sums.loss == wanted.loss, is_norm_equal = sums.grad_norm == wanted.grad_norm;
      result.losses_equal = result.losses_equal && is_loss_equal;
      result.norms_equal = result.norms_equal && is_norm_equal;
      if (step == 1) result.first_loss = wanted.loss;
      result.last_loss = wanted.loss;
      if (!(is_loss_equal && is_norm_equal) && result.first_difference.empty()) {
        result.first_difference = fmt::format("step {}: loss {:.17g} and {:.17g} on one rank, norm {:.17g} and {:.17g}",
                                              step, sums.loss, wanted.loss, sums.grad_norm, wanted.grad_norm);
      }
    }
    Comparison updates("update", step, result, result.updates_different, result.worst_update);
    bring_own_rows(
        world, parameters, [&](size_t i) { return on_host(parameters[i]->master()); },
        [&](size_t i, int64_t first, const Tensor& rows) {
          updates.rows(*of_reference[i], on_host(of_reference[i]->master()), first, rows);
        });
  }
  result.steps = steps;
  for (const Parameter* parameter : of_reference) result.tensors += reference ? int64_t(parameter->pieces().size()) : 0;
  return result;
}

}  // namespace octet
