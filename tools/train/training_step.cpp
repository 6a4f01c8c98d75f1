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

// Weights whose dgrad reads them transposed are kept so over the micro-batches of a step, for the life of the object.
class TransposedWeights {
 public:
  TransposedWeights(Transformer& model, int64_t micro_batches) {
    if (micro_batches == 1) return;
    const ModelContext& context = model.context();
    for (Parameter* parameter : model.parameters()) {
      if (!parameter->is_read_transposed(context.device.type, context.numerics.emulation)) continue;
      parameter->keep_transposed(true);
      kept_.push_back(parameter);
    }
  }
  ~TransposedWeights() {
    for (Parameter* parameter : kept_) parameter->keep_transposed(false);
  }
  TransposedWeights(const TransposedWeights&) = delete;
  TransposedWeights& operator=(const TransposedWeights&) = delete;

 private:
  std::vector<Parameter*> kept_;
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

StepTokens::StepTokens(const StepPlan& plan, Device device)
    : plan_(plan),
      ids_(empty({plan.count, plan.sequences * plan.seq_len}, DType::kInt32, device)),
      targets_(empty_like(ids_)) {}

void StepTokens::fill(const std::function<Batch(int64_t micro_batch)>& fetch) {
  const int64_t T = ids_.cols();
  std::vector<int32_t> ids, targets;
  for (int64_t i = 0; i < plan_.count; ++i) {
    const Batch batch = fetch(plan_.first + i);
    require(int64_t(batch.inputs.size()) == T && int64_t(batch.targets.size()) == T,
            "StepTokens: {} tokens and {} targets; wanted {} of each", batch.inputs.size(), batch.targets.size(), T);
    ids.insert(ids.end(), batch.inputs.begin(), batch.inputs.end());
    targets.insert(targets.end(), batch.targets.begin(), batch.targets.end());
  }
  copy(from_vector(ids, ids_.shape()), ids_);
  copy(from_vector(targets, targets_.shape()), targets_);
}

Transformer::MicroBatch StepTokens::of(int64_t micro_batch) const {
  const auto row = [&](const Tensor& all) {
    return all.slice_rows(micro_batch - plan_.first, 1).reshape({all.cols()});
  };
  return {row(ids_), row(targets_)};
}

Transformer::MicroBatch tokens_on(Device device, const Batch& batch) {
  const auto there = [device](const std::vector<int32_t>& tokens) {
    return from_vector(tokens, {int64_t(tokens.size())}, device);
  };
  return {there(batch.inputs), there(batch.targets)};
}

StepLosses::StepLosses(const StepPlan& plan, Device device)
    : plan_(plan),
      losses_(empty({plan.count, plan.sequences * plan.seq_len}, DType::kFloat32, MemoryCategory::kWorkspace, device)) {
}

Tensor StepLosses::of(int64_t micro_batch) const {
  return losses_.slice_rows(micro_batch - plan_.first, 1).reshape({losses_.cols()});
}

StepLosses::Reading StepLosses::read() const {
  Reading reading;
  reading.plan_ = plan_;
  reading.losses_ = Readback(losses_);
  return reading;
}

std::vector<double> StepLosses::Reading::wait() const {
  std::vector<double> losses(size_t(plan_.micro_batches), 0.0);
  const auto all = losses_.wait<float>();
  const auto T = size_t(plan_.sequences * plan_.seq_len);
  for (size_t i = 0; i < size_t(plan_.count); ++i) {
    losses[size_t(plan_.first) + i] = sum_of_losses(all.subspan(i * T, T));
  }
  return losses;
}

void run_micro_batches(Transformer& model, const StepPlan& plan,
                       const std::function<Transformer::MicroBatch(int64_t micro_batch)>& tokens_of,
                       const StepLosses& losses, const StepRanks& ranks) {
  require(plan.count % plan.groups == 0 && plan.count / plan.groups % plan.interleave == 0,
          "run_micro_batches: {} micro-batches in {} groups, {} at a time; wanted whole numbers", plan.count,
          plan.groups, plan.interleave);
  for (Router* router : model.routers()) router->begin_step();
  if (WgradTiles* tiles = model.wgrad_tiles()) tiles->begin_step();
  const TransposedWeights transposed(model, plan.count);
  GroupSums groups(model);
  for (int64_t done = 0; done < plan.count;) {
    std::vector<Transformer::MicroBatch> side_by_side;
    for (int64_t i = 0; i < plan.interleave; ++i) side_by_side.push_back(tokens_of(plan.first + done + i));
    const bool is_last = done + plan.interleave == plan.count;
    if (ranks.shards != nullptr && is_last) {
      model.context().on_unit_done = [shards = ranks.shards](size_t unit) { shards->unit_done(unit); };
    }
    const auto parts = model.train_micro_batches(side_by_side, plan.sequences, 1.0f / float(plan.tokens()),
                                                 1.0f / float(plan.micro_batches));
    model.context().on_unit_done = {};
    for (const HeadLoss& part : parts) copy(part.losses, losses.of(plan.first + done++));
    if (plan.groups > 1 && done % (plan.count / plan.groups) == 0) groups.take_group();
  }
  if (plan.groups > 1) groups.give_back();
  if (ranks.shards != nullptr) ranks.shards->finish_reduction();
}

StepSums sum_step(Transformer& model, AdamW& optimizer, const StepPlan& plan, const StepLosses& step_losses,
                  const StepRanks& ranks, bool asks_to_stop) {
  const std::vector<Router*> routers = model.routers();
  std::vector<Router::Reading> readings;
  for (const Router* router : routers) readings.push_back(router->read());
  WgradTiles* const tiles = model.wgrad_tiles();
  const WgradTiles::Reading lost_on_the_way = tiles == nullptr ? WgradTiles::Reading() : tiles->read();
  const StepLosses::Reading losses_on_the_way = step_losses.read();
  const AdamW::SquareSums squares_on_the_way = optimizer.square_sums();
  // The last that was asked for is the first that the host waits for: then all the others are there.
  DeviceFault(model.context().device).rethrow();
  const std::vector<double> squares = squares_on_the_way.wait();
  const std::vector<double> losses = losses_on_the_way.wait();
  std::vector<double> sums(size_t(kStepSums), 0.0);
  sums[0] = asks_to_stop ? 1 : 0;
  for (const Router::Reading& reading : readings) {
    const Router::Losses of = reading.losses();
    sums[1] += double(of.balance), sums[2] += double(of.z);
  }
  sums.insert(sums.end(), losses.begin(), losses.end());
  sums.insert(sums.end(), squares.begin(), squares.end());
  // Loads and counts are whole numbers below 2^53.
  for (const Router::Reading& reading : readings) {
    const std::vector<int64_t> load = reading.load();
    sums.insert(sums.end(), load.begin(), load.end());
  }
  if (tiles != nullptr) {
    const std::vector<int64_t> lost = lost_on_the_way.wait();
    sums.insert(sums.end(), lost.begin(), lost.end());
  }
  if (ranks.world != nullptr) ranks.world->all_reduce(sums);

  StepSums result{
      .balance_loss = sums[1], .z_loss = sums[2], .asks_to_stop = sums[0] > 0, .loads = {}, .fallbacks = {}};
  auto next = sums.begin() + kStepSums;
  for (size_t i = 0; i < losses.size(); ++i) result.loss += *next++;
  result.loss /= double(plan.tokens());
  result.grad_norm = AdamW::norm_of({next, squares.size()});
  const bool is_of_many = ranks.world != nullptr && ranks.world->size() > 1;
  if (is_of_many) optimizer.set_square_sums({next, next + std::ptrdiff_t(squares.size())});
  next += std::ptrdiff_t(squares.size());
  for (Router* router : routers) {
    std::vector<int64_t>& load = result.loads.emplace_back(size_t(model.config().moe.num_experts));
    for (int64_t& count : load) count = int64_t(*next++);
    if (is_of_many) router->set_load(load);
  }
  if (tiles != nullptr) result.fallbacks = tiles->decide(std::vector<int64_t>(next, sums.end()));
  return result;
}

void apply_update(Transformer& model, AdamW& optimizer, const StepLosses& losses, Fp8Counts* counts,
                  const StepRanks& ranks) {
  optimizer.judge(losses.of_all());
  optimizer.apply(counts == nullptr ? nullptr : &counts->weight);
  if (ranks.shards != nullptr) ranks.shards->gather_weights();
  for (Router* router : model.routers()) router->end_step(optimizer.factors());
  optimizer.clear_gradients();
}

}  // namespace octet
