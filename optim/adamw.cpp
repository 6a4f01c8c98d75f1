#include "optim/adamw.h"

#include <algorithm>
#include <cmath>

#include "kernels/adamw.h"
#include "kernels/elementwise.h"

namespace octet {

AdamW::AdamW(std::vector<Parameter*> parameters, const OptimConfig& config, DType moments)
    : parameters_(std::move(parameters)), config_(config) {
  for (const Parameter* parameter : parameters_) {
    moments_.push_back({.m = zeros(parameter->shape(), moments, MemoryCategory::kOptimizer),
                        .v = zeros(parameter->shape(), moments, MemoryCategory::kOptimizer)});
  }
}

double AdamW::gradient_norm() {
  double sum = 0;
  for (Parameter* parameter : parameters_) {
    kernels::sum_of_squares({.x = parameter->grad(), .sum = &sum}, parameter->grad().stream());
  }
  return std::sqrt(sum);
}

void AdamW::step(int64_t step, double lr, double norm, kernels::QuantizeStats* stats) {
  const double clip = config_.grad_clip > 0 && norm > config_.grad_clip ? config_.grad_clip / norm : 1.0;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    Parameter& parameter = *parameters_[i];
    View weight, codes, code_scale;
    if (parameter.is_refreshed() && parameter.form() == WeightForm::kBFloat16) weight = parameter.weight();
    if (parameter.is_refreshed() && parameter.form() == WeightForm::kFp8Block) {
      codes = parameter.fp8().codes;
      code_scale = parameter.fp8().scale;
    }
    kernels::adamw_step({.master = parameter.master(),
                         .grad = parameter.grad(),
                         .m = moments_[i].m,
                         .v = moments_[i].v,
                         .weight = weight,
                         .codes = codes,
                         .code_scale = code_scale,
                         .stats = stats,
                         .lr = float(lr),
                         .beta1 = float(config_.beta1),
                         .beta2 = float(config_.beta2),
                         .eps = float(config_.eps),
                         .weight_decay = parameter.decays() ? float(config_.weight_decay) : 0.0f,
                         .grad_scale = float(clip),
                         .step = step},
                        parameter.master().stream());
  }
  clear_gradients();
}

void AdamW::clear_gradients() {
  for (Parameter* parameter : parameters_) parameter->clear_grad();
}

}  // namespace octet
