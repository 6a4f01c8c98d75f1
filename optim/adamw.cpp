#include "optim/adamw.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/adamw.h"
#include "kernels/elementwise.h"

namespace octet {

namespace {

// In the whole model's parameter.
int64_t slabs_of(const Parameter& parameter) {
  return parameter.is_cut() ? parameter.slabs_of_matrix() * parameter.cut().total : parameter.num_slabs();
}

}  // namespace

AdamW::AdamW(std::vector<Parameter*> parameters, const OptimConfig& config, DType moments, Communicator* world)
    : parameters_(std::move(parameters)), config_(config), world_(world) {
  int64_t slabs = 0;
  for (const Parameter* parameter : parameters_) {
    const auto make = [&] {
      return zeros(parameter->own_shape(), moments, MemoryCategory::kOptimizer, parameter->device());
    };
    moments_.push_back({.m = make(), .v = make()});
    slabs += slabs_of(*parameter);
  }
  const Device device = parameters_.empty() ? Device{} : parameters_[0]->device();
  factors_ =
      zeros({int64_t(kernels::UpdateFactors().words().size())}, DType::kInt64, MemoryCategory::kWorkspace, device);
  squares_ = zeros({slabs}, DType::kInt64, MemoryCategory::kWorkspace, device);
}

std::vector<double> AdamW::SquareSums::wait() const {
  std::vector<double> sums;
  for (const int64_t bits : bits_.wait<int64_t>()) sums.push_back(std::bit_cast<double>(bits));
  return sums;
}

AdamW::SquareSums AdamW::square_sums() const {
  SquareSums sums;
  sums.bits_ = Readback(squares_);
  return sums;
}

void AdamW::set_square_sums(const std::vector<double>& sums) {
  std::vector<int64_t> bits;
  for (const double sum : sums) bits.push_back(std::bit_cast<int64_t>(sum));
  copy(from_vector(bits, squares_.shape()), squares_);
}

void AdamW::measure() {
  fill_zero(squares_);
  int64_t begin = 0;
  for (Parameter* parameter : parameters_) {
    const int64_t of_matrix = parameter->slabs_of_matrix();
    double* of_parameter =
        squares_.view().data<double>() + begin + (parameter->is_cut() ? of_matrix * parameter->cut().first : 0);
    begin += slabs_of(*parameter);
    if (parameter->own().rows == 0) continue;
    const Tensor& grad = parameter->grad();
    const int64_t N = parameter->rows_of_matrix(), K = parameter->shape().cols();
    const Tensor rows = grad.reshape({parameter->num_rows(), K});
    for (const RowRange& range : parameter->split_at_matrices(parameter->own())) {
      const Tensor part = rows.slice_rows(range.first, range.rows);
      double* to = of_parameter + range.first / N * of_matrix + range.first % N / kSlabRows;
      kernels::square_sums({.x = range.rows % N == 0 ? part.reshape({range.rows / N, N, K}) : part, .sums = to},
                           grad.stream());
    }
  }
}

double AdamW::norm_of(std::span<const double> sums) {
  double sum = 0;
  for (const double of_slab : sums) sum += of_slab;
  return std::sqrt(sum);
}

double AdamW::gradient_norm() {
  measure();
  std::vector<double> sums = square_sums().wait();
  if (world_ != nullptr) world_->all_reduce(sums);
  return norm_of(sums);
}

void AdamW::prepare(int64_t step, double lr) {
  const auto factors = kernels::UpdateFactors::of_step(step, float(lr), float(config_.beta1), float(config_.beta2));
  const auto words = factors.words();
  copy(from_vector(std::vector<int64_t>(words.begin(), words.end()), factors_.shape()), factors_);
}

const kernels::UpdateFactors* AdamW::factors() const {
  return static_cast<const kernels::UpdateFactors*>(factors_.view().raw());
}

void AdamW::judge(const Tensor& losses) {
  kernels::judge_update({.losses = losses,
                         .squares = squares_,
                         .grad_clip = config_.grad_clip,
                         .factors = static_cast<kernels::UpdateFactors*>(factors_.view().raw())},
                        squares_.stream());
}

void AdamW::apply(kernels::QuantizeStats* stats) {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    Parameter& parameter = *parameters_[i];
    if (parameter.own().rows == 0) continue;
    kernels::AdamwStep args{.master = parameter.master(),
                            .grad = parameter.own_rows_of(parameter.grad()),
                            .m = moments_[i].m,
                            .v = moments_[i].v,
                            .weight = {},
                            .stats = stats,
                            .factors = factors(),
                            .beta1 = float(config_.beta1),
                            .beta2 = float(config_.beta2),
                            .eps = float(config_.eps),
                            .weight_decay = parameter.decays() ? float(config_.weight_decay) : 0.0f};
    Stream& stream = parameter.master().stream();
    if (!parameter.is_refreshed() || parameter.form() != WeightForm::kFp8Block) {
      if (parameter.is_refreshed() && parameter.form() == WeightForm::kBFloat16) {
        args.weight = parameter.own_rows_of(parameter.weight());
      }
      kernels::adamw_step(args, stream);
      continue;
    }
    for (const RowRange& range : parameter.split_at_matrices(parameter.own())) {
      const Parameter::Fp8 fp8 = parameter.fp8_rows(range);
      const auto rows = [&](const Tensor& own) {
        return own.reshape({parameter.own().rows, own.cols()})
            .slice_rows(range.first - parameter.own().first, range.rows)
            .reshape(fp8.codes.shape());
      };
      args.codes = fp8.codes;
      args.code_scale = fp8.scale;
      const Tensor master = rows(parameter.master()), grad = rows(parameter.own_rows_of(parameter.grad()));
      const Tensor m = rows(moments_[i].m), v = rows(moments_[i].v);
      args.master = master, args.grad = grad, args.m = m, args.v = v;
      kernels::adamw_step(args, stream);
    }
  }
}

void AdamW::step(int64_t step, double lr, kernels::QuantizeStats* stats) {
  prepare(step, lr);
  measure();
  if (world_ != nullptr && world_->size() > 1) {
    std::vector<double> sums = square_sums().wait();
    world_->all_reduce(sums);
    set_square_sums(sums);
  }
  judge(Tensor({0}, DType::kFloat32, MemoryCategory::kWorkspace, squares_.device()));
  apply(stats);
  clear_gradients();
}

void AdamW::clear_gradients() {
  for (Parameter* parameter : parameters_) parameter->clear_grad();
}

}  // namespace octet
