#include "parallel/parameter_shards.h"

namespace octet {
namespace {

// Each parameter begins at a cache line of the widest vectors.
constexpr int64_t kAlignElements = 64;
int64_t aligned(int64_t elements) { return (elements + kAlignElements - 1) / kAlignElements * kAlignElements; }

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat32, DType::kBFloat16, DType::kFloat8E4M3, DType::kFloat32};

// Of the rows before `row`, in a tensor of each kind.
int64_t scale_elements(const Parameter& parameter, int64_t row) {
  const int64_t N = parameter.rows_of_matrix(), k_blocks = (parameter.shape().cols() + 127) / 128;
  return (row / N * parameter.slabs_of_matrix() + row % N / kSlabRows) * k_blocks;
}

}  // namespace

ParameterShards::ParameterShards(const std::vector<std::vector<Parameter*>>& units, Communicator& dense,
                                 Communicator& experts, const ShardOptions& options) {
  add_buckets(units, /*cut=*/false, dense, options);
  add_buckets(units, /*cut=*/true, experts, options);
}

void ParameterShards::add_buckets(const std::vector<std::vector<Parameter*>>& units, bool cut, Communicator& ranks,
                                  const ShardOptions& options) {
  if (ranks.size() == 1) return;
  Bucket open;
  int64_t bytes = 0;
  const auto close = [&] {
    if (open.parameters.empty()) return;
    open.ranks = &ranks;
    lay_out(open);
    buckets_.push_back(std::move(open));
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

void ParameterShards::lay_out(Bucket& bucket) {
  const auto ranks = int64_t(bucket.ranks->size());
  const auto me = int64_t(bucket.ranks->rank());
  int64_t total = 0;
  for (const Parameter* parameter : bucket.parameters) total += parameter->shape().num_elements();

  // Where each parameter begins, by kind, and where each rank does: at the slab nearest to its share of the elements.
  std::array<int64_t, kKinds> end{};
  std::vector<std::array<int64_t, kKinds>> begin_of(bucket.parameters.size());
  std::vector<std::array<int64_t, kKinds>> begin_of_rank;
  std::vector<RowRange> own(bucket.parameters.size());
  int64_t elements = 0;
  for (size_t i = 0; i < bucket.parameters.size(); ++i) {
    const Parameter& parameter = *bucket.parameters[i];
    const int64_t cols = parameter.shape().cols(), n = parameter.shape().num_elements();
    begin_of[i] = end;
    const auto position = [&](int64_t row) {
      std::array<int64_t, kKinds> at = begin_of[i];
      at[kGrad] += row * cols;
      if (parameter.form() == WeightForm::kFloat32) at[kFloat32] += row * cols;
      if (parameter.form() == WeightForm::kBFloat16) at[kBFloat16] += row * cols;
      if (parameter.form() == WeightForm::kFp8Block) {
        at[kCodes] += row * cols;
        at[kScale] += scale_elements(parameter, row);
      }
      return at;
    };
    for (int64_t s = 0; s < parameter.num_slabs(); ++s) {
      const RowRange slab = parameter.slab(s);
      while (int64_t(begin_of_rank.size()) < ranks &&
             2 * ranks * elements + ranks * slab.rows * cols > 2 * int64_t(begin_of_rank.size()) * total) {
        begin_of_rank.push_back(position(slab.first));
      }
      if (int64_t(begin_of_rank.size()) - 1 == me) {
        if (own[i].rows == 0) own[i].first = slab.first;
        own[i].rows += slab.rows;
      }
      elements += slab.rows * cols;
    }
    end[kGrad] = aligned(end[kGrad] + n);
    if (parameter.form() == WeightForm::kFloat32) end[kFloat32] = aligned(end[kFloat32] + n);
    if (parameter.form() == WeightForm::kBFloat16) end[kBFloat16] = aligned(end[kBFloat16] + n);
    if (parameter.form() == WeightForm::kFp8Block) {
      end[kCodes] = aligned(end[kCodes] + n);
      end[kScale] = aligned(end[kScale] + scale_elements(parameter, parameter.num_rows()));
    }
  }
  begin_of_rank.resize(size_t(ranks) + 1, end);
  begin_of_rank.front() = {};
  begin_of_rank.back() = end;

  for (int kind = 0; kind < kKinds; ++kind) {
    Flat& flat = bucket.flat[size_t(kind)];
    const MemoryCategory category = kind == kGrad ? MemoryCategory::kGradients : MemoryCategory::kWeights;
    if (end[size_t(kind)] > 0) flat.memory = zeros({end[size_t(kind)]}, kDTypes[kind], category);
    for (int64_t r = 0; r < ranks; ++r) {
      flat.counts.push_back(begin_of_rank[size_t(r) + 1][size_t(kind)] - begin_of_rank[size_t(r)][size_t(kind)]);
    }
  }
  for (size_t i = 0; i < bucket.parameters.size(); ++i) {
    Parameter& parameter = *bucket.parameters[i];
    const Shape& shape = parameter.shape();
    const auto part = [&](Kind kind, const Shape& of) {
      return bucket.flat[kind].memory.slice_rows(begin_of[i][kind], of.num_elements()).reshape(of);
    };
    Parameter::Storage storage{.grad = part(kGrad, shape), .weight = {}, .codes = {}, .scale = {}};
    if (parameter.form() == WeightForm::kFloat32) storage.weight = part(kFloat32, shape);
    if (parameter.form() == WeightForm::kBFloat16) storage.weight = part(kBFloat16, shape);
    if (parameter.form() == WeightForm::kFp8Block) {
      const int64_t G = parameter.num_matrices(), N = parameter.rows_of_matrix(), K = shape.cols();
      storage.codes = part(kCodes, {G, N, K});
      storage.scale = part(kScale, {G, parameter.slabs_of_matrix(), (K + 127) / 128});
    }
    parameter.place(own[i], std::move(storage));
  }
}

void ParameterShards::start_reduction(Bucket& bucket) {
  if (bucket.is_reducing) return;
  for (Parameter* parameter : bucket.parameters) parameter->grad();  // zeros, where nothing was added
  const Flat& flat = bucket.flat[kGrad];
  int64_t begin = 0;
  for (int r = 0; r < bucket.ranks->rank(); ++r) begin += flat.counts[size_t(r)];
  const Tensor mine = flat.memory.slice_rows(begin, flat.counts[size_t(bucket.ranks->rank())]);
  bucket.reduction =
      bucket.ranks->start_reduce_scatter_v(flat.memory, {.counts = flat.counts}, mine, flat.memory.stream());
  bucket.is_reducing = true;
}

void ParameterShards::unit_done(size_t unit) {
  for (Bucket& bucket : buckets_) {
    if (unit <= bucket.first_unit) start_reduction(bucket);
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
    for (int kind = kFloat32; kind < kKinds; ++kind) {
      const Flat& flat = bucket.flat[size_t(kind)];
      if (!flat.memory.is_defined()) continue;
      int64_t begin = 0;
      for (int r = 0; r < bucket.ranks->rank(); ++r) begin += flat.counts[size_t(r)];
      const Tensor mine = flat.memory.slice_rows(begin, flat.counts[size_t(bucket.ranks->rank())]);
      gathers.push_back(
          bucket.ranks->start_all_gather_v(mine, flat.memory, {.counts = flat.counts}, flat.memory.stream()));
    }
  }
  for (Pending& gather : gathers) gather.wait();
}

}  // namespace octet
