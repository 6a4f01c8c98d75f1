#include "tools/train/training_step.h"

#include "core/tensor/device_fault.h"
#include "kernels/elementwise.h"
#include "tools/train/model_stats.h"

namespace octet {
namespace {

// Sums of gradients over groups of micro-batches, each group's taken when it is complete.
class GroupSums {
 public:
  explicit GroupSums(Transformer& model) : parameters_(model.parameters()) {}

  void take_group() {
    for (size_t i = 0; i < parameters_.size(); ++i) {
      const Tensor& grad = parameters_[i]->grad();
      if (sums_.size() <= i) {
        sums_.push_back(empty(grad.shape(), grad.dtype(), MemoryCategory::kGradients, grad.device()));
        kernels::cast({.x = grad, .y = sums_[i]}, grad.stream());
      } else {
        kernels::add_into({.a = sums_[i], .b = grad, .y = sums_[i]}, grad.stream());
      }
      parameters_[i]->clear_grad();
    }
  }
  void give_back() const {
    for (size_t i = 0; i < parameters_.size(); ++i) {
      const Tensor& grad = parameters_[i]->grad();
      kernels::cast({.x = sums_[i], .y = grad}, grad.stream());
    }
  }

 private:
  std::vector<Parameter*> parameters_;
  std::vector<Tensor> sums_;
};

}  // namespace

RecomputeParts recompute_parts(const TrainConfig& train) {
  return {.norm = train.recomputes(Recompute::kNorm),
          .swiglu = train.recomputes(Recompute::kSwiglu),
          .attention = train.recomputes(Recompute::kAttention),
          .block = train.recomputes(Recompute::kBlock)};
}

DType moments_dtype(const PrecisionConfig& precision) {
  return precision.moments == MomentType::kBf16 ? DType::kBFloat16 : DType::kFloat32;
}

StepPlan plan_step(const Config& config, int rank) {
  const int64_t micro_batches = config.num_micro_batches(), count = micro_batches / config.parallel.dp;
  return {.seq_len = config.data.seq_len,
          .sequences = config.sequences_per_micro_batch(),
          .micro_batches = micro_batches,
          .first = rank * count,
          .count = count,
          .interleave = config.parallel.interleave};
}

std::vector<double> StepLosses::wait() const {
  std::vector<double> losses(size_t(plan_.micro_batches), 0.0);
  for (size_t i = 0; i < parts_.size(); ++i) losses[size_t(plan_.first) + i] = parts_[i].sum();
  return losses;
}

StepLosses run_micro_batches(Transformer& model, const StepPlan& plan,
                             const std::function<Batch(int64_t micro_batch)>& fetch, const StepRanks& ranks) {
  require(plan.count % plan.groups == 0 && plan.count / plan.groups % plan.interleave == 0,
          "run_micro_batches: {} micro-batches in {} groups, {} at a time; wanted whole numbers", plan.count,
          plan.groups, plan.interleave);
  const int64_t T = plan.sequences * plan.seq_len;
  const Device device = model.context().device;
  std::vector<HeadLoss> parts;
  GroupSums groups(model);
  for (int64_t done = 0; done < plan.count;) {
    std::vector<Transformer::MicroBatch> side_by_side;
    for (int64_t i = 0; i < plan.interleave; ++i) {
      const Batch batch = fetch(plan.first + done + i);
      side_by_side.push_back({from_vector(batch.inputs, {T}, device), from_vector(batch.targets, {T}, device)});
    }
    const bool is_last = done + plan.interleave == plan.count;
    if (ranks.shards != nullptr && is_last) {
      model.context().on_unit_done = [shards = ranks.shards](size_t unit) { shards->unit_done(unit); };
    }
    auto losses = model.train_micro_batches(side_by_side, plan.sequences, 1.0f / float(plan.tokens()),
                                            1.0f / float(plan.micro_batches));
    model.context().on_unit_done = {};
    for (HeadLoss& loss : losses) parts.push_back(std::move(loss)), ++done;
    if (plan.groups > 1 && done % (plan.count / plan.groups) == 0) groups.take_group();
  }
  if (plan.groups > 1) groups.give_back();
  if (ranks.shards != nullptr) ranks.shards->finish_reduction();
  return StepLosses(plan, std::move(parts));
}

StepSums sum_step(Transformer& model, const AdamW& optimizer, const StepPlan& plan, const StepLosses& step_losses,
                  const StepRanks& ranks, bool asks_to_stop) {
  const std::vector<Router*> routers = model.routers();
  std::vector<Router::Reading> readings;
  for (const Router* router : routers) readings.push_back(router->read());
  const AdamW::SquareSums square_sums = optimizer.square_sums();
  // The last that was asked for is the first that the host waits for: then all the others are there.
  DeviceFault(model.context().device).rethrow();
  const std::vector<double> squares = square_sums.wait();
  const std::vector<double> losses = step_losses.wait();
  std::vector<double> sums(size_t(kStepSums), 0.0);
  sums[0] = asks_to_stop ? 1 : 0;
  for (const Router::Reading& reading : readings) {
    const Router::Losses of = reading.losses();
    sums[1] += double(of.balance), sums[2] += double(of.z);
  }
  sums.insert(sums.end(), losses.begin(), losses.end());
  sums.insert(sums.end(), squares.begin(), squares.end());
  // Loads are whole numbers below 2^53.
  for (const Router::Reading& reading : readings) {
    const std::vector<int64_t> load = reading.load();
    sums.insert(sums.end(), load.begin(), load.end());
  }
  if (ranks.world != nullptr) ranks.world->all_reduce(sums);

  StepSums result{.balance_loss = sums[1], .z_loss = sums[2], .asks_to_stop = sums[0] > 0, .loads = {}};
  auto next = sums.begin() + kStepSums;
  for (size_t i = 0; i < losses.size(); ++i) result.loss += *next++;
  result.loss /= double(plan.tokens());
  result.grad_norm = AdamW::norm_of({next, squares.size()});
  next += std::ptrdiff_t(squares.size());
  for (Router* router : routers) {
    std::vector<int64_t>& load = result.loads.emplace_back(size_t(model.config().moe.num_experts));
    for (int64_t& count : load) count = int64_t(*next++);
    if (ranks.world != nullptr && ranks.world->size() > 1) router->set_load(load);
  }
  return result;
}

void apply_update(Transformer& model, AdamW& optimizer, int64_t step, double lr, double norm, Fp8Counts* counts,
                  const StepRanks& ranks) {
  optimizer.step(step, lr, norm, counts == nullptr ? nullptr : &counts->weight);
  if (ranks.shards != nullptr) ranks.shards->gather_weights();
  for (Router* router : model.routers()) router->end_step();
}

}  // namespace octet
