#include "parallel/parameter_shards.h"

namespace octet {
namespace {

// Each parameter begins at a cache line of the widest vectors.
constexpr int64_t kAlignElements = 64;
int64_t aligned(int64_t elements) { return (elements + kAlignElements - 1) / kAlignElements * kAlignElements; }

ShardCounts operator+(ShardCounts a, const ShardCounts& b) {
  for (size_t kind = 0; kind < kShardKinds; ++kind) a[kind] += b[kind];
  return a;
}

void lay_out(BucketPlan& plan, int64_t ranks, int64_t me) {
  int64_t total = 0;
  for (const Parameter* parameter : plan.parameters) total += parameter->shape().num_elements();

  // Where each parameter begins, by kind, and where each rank does: at the slab nearest to its share of the elements.
  ShardCounts end{};
  std::vector<ShardCounts> begin_of_rank;
  plan.own.resize(plan.parameters.size());
  int64_t elements = 0;
  for (size_t i = 0; i < plan.parameters.size(); ++i) {
    const Parameter& parameter = *plan.parameters[i];
    plan.begin.push_back(end);
    for (int64_t s = 0; s < parameter.num_slabs(); ++s) {
      const RowRange slab = parameter.slab(s);
      const int64_t of_slab = slab.rows * parameter.shape().cols();
      while (int64_t(begin_of_rank.size()) < ranks &&
             2 * ranks * elements + ranks * of_slab > 2 * int64_t(begin_of_rank.size()) * total) {
        begin_of_rank.push_back(plan.begin[i] + shard_elements(parameter, slab.first));
      }
      if (int64_t(begin_of_rank.size()) - 1 == me) {
        if (plan.own[i].rows == 0) plan.own[i].first = slab.first;
        plan.own[i].rows += slab.rows;
      }
      elements += of_slab;
    }
    end = end + shard_elements(parameter, parameter.num_rows());
    for (int64_t& of_kind : end) of_kind = aligned(of_kind);
  }
  begin_of_rank.resize(size_t(ranks) + 1, end);
  begin_of_rank.front() = {};
  begin_of_rank.back() = end;
  plan.elements = end;
  for (size_t kind = 0; kind < kShardKinds; ++kind) {
    for (size_t r = 0; r < size_t(ranks); ++r) {
      plan.of_rank[kind].push_back(begin_of_rank[r + 1][kind] - begin_of_rank[r][kind]);
    }
  }
}

}  // namespace

ShardCounts shard_elements(const Parameter& parameter, int64_t row) {
  const int64_t N = parameter.rows_of_matrix(), cols = parameter.shape().cols();
  ShardCounts counts{};
  counts[kShardGrad] = row * cols;
  switch (parameter.form()) {
    case WeightForm::kFloat32:
      counts[kShardFloat32] = row * cols;
      break;
    case WeightForm::kBFloat16:
      counts[kShardBFloat16] = row * cols;
      break;
    case WeightForm::kFp8Block:
      counts[kShardCodes] = row * cols;
      counts[kShardScale] = (row / N * parameter.slabs_of_matrix() + row % N / kSlabRows) * ((cols + 127) / 128);
  }
  return counts;
}

void plan_buckets(const std::vector<std::vector<Parameter*>>& units, bool cut, int64_t ranks, int64_t me,
                  const ShardOptions& options, const std::function<void(BucketPlan&&)>& visit) {
  BucketPlan open;
  int64_t bytes = 0;
  const auto close = [&] {
    if (open.parameters.empty()) return;
    lay_out(open, ranks, me);
    visit(std::move(open));
    open = {};
    bytes = 0;
  };
  for (size_t unit = units.size(); unit-- > 0;) {
    for (Parameter* parameter : units[unit]) {
      if (parameter->is_cut() != cut) continue;
      open.parameters.push_back(parameter);
      bytes += parameter->shape().num_elements() * size_of(DType::kFloat32);
    }
    open.first_unit = unit;
    if (bytes >= options.bucket_bytes) close();
  }
  close();
}

ParameterShards::ParameterShards(const std::vector<std::vector<Parameter*>>& units, Communicator& dense,
                                 Communicator& experts, const ShardOptions& options) {
  add_buckets(units, /*cut=*/false, dense, options);
  add_buckets(units, /*cut=*/true, experts, options);
}

void ParameterShards::add_buckets(const std::vector<std::vector<Parameter*>>& units, bool cut, Communicator& ranks,
                                  const ShardOptions& options) {
  if (ranks.size() == 1) return;
  plan_buckets(units, cut, ranks.size(), ranks.rank(), options, [&](BucketPlan&& plan) {
    buckets_.push_back({.ranks = &ranks, .plan = std::move(plan), .flat = {}, .reduction = {}, .is_reducing = false});
    place(buckets_.back());
  });
}

void ParameterShards::place(Bucket& bucket) {
  const BucketPlan& plan = bucket.plan;
  const Device device = plan.parameters[0]->device();
  for (size_t kind = 0; kind < kShardKinds; ++kind) {
    const MemoryCategory category = kind == kShardGrad ? MemoryCategory::kGradients : MemoryCategory::kWeights;
    if (plan.elements[kind] > 0) bucket.flat[kind] = zeros({plan.elements[kind]}, kShardDTypes[kind], category, device);
  }
  for (size_t i = 0; i < plan.parameters.size(); ++i) {
    Parameter& parameter = *plan.parameters[i];
    const Shape& shape = parameter.shape();
    const auto part = [&](ShardKind kind, const Shape& of) {
      return bucket.flat[kind].slice_rows(plan.begin[i][kind], of.num_elements()).reshape(of);
    };
    Parameter::Storage storage{.grad = part(kShardGrad, shape), .weight = {}, .codes = {}, .scale = {}};
    if (parameter.form() == WeightForm::kFloat32) storage.weight = part(kShardFloat32, shape);
    if (parameter.form() == WeightForm::kBFloat16) storage.weight = part(kShardBFloat16, shape);
    if (parameter.form() == WeightForm::kFp8Block) {
      const int64_t G = parameter.num_matrices(), N = parameter.rows_of_matrix(), K = shape.cols();
      storage.codes = part(kShardCodes, {G, N, K});
      storage.scale = part(kShardScale, {G, parameter.slabs_of_matrix(), (K + 127) / 128});
    }
    parameter.place(plan.own[i], std::move(storage));
  }
}

Tensor ParameterShards::Bucket::mine(ShardKind kind) const {
  const auto me = size_t(ranks->rank());
  int64_t begin = 0;
  for (size_t r = 0; r < me; ++r) begin += plan.of_rank[kind][r];
  return flat[kind].slice_rows(begin, plan.of_rank[kind][me]);
}

void ParameterShards::start_reduction(Bucket& bucket) {
  if (bucket.is_reducing) return;
  for (Parameter* parameter : bucket.plan.parameters) parameter->grad();  // zeros, where nothing was added
  const Tensor& all = bucket.flat[kShardGrad];
  bucket.reduction = bucket.ranks->start_reduce_scatter_v(all, {.counts = bucket.plan.of_rank[kShardGrad]},
                                                          bucket.mine(kShardGrad), all.stream());
  bucket.is_reducing = true;
}

void ParameterShards::unit_done(size_t unit) {
  for (Bucket& bucket : buckets_) {
    if (unit <= bucket.plan.first_unit) start_reduction(bucket);
  }
  if (!buckets_.empty()) buckets_.front().ranks->progress();
}

void ParameterShards::finish_reduction() {
  for (Bucket& bucket : buckets_) start_reduction(bucket);
  for (Bucket& bucket : buckets_) {
    bucket.reduction.wait();
    bucket.is_reducing = false;
  }
}

void ParameterShards::gather_weights() {
  std::vector<Pending> gathers;
  for (Bucket& bucket : buckets_) {
    for (int kind = kShardFloat32; kind < kShardKinds; ++kind) {
      const Tensor& all = bucket.flat[size_t(kind)];
      if (!all.is_defined()) continue;
      gathers.push_back(bucket.ranks->start_all_gather_v(bucket.mine(ShardKind(kind)), all,
                                                         {.counts = bucket.plan.of_rank[size_t(kind)]}, all.stream()));
    }
  }
  for (Pending& gather : gathers) gather.wait();
}

}  // namespace octet
