// AdamW over the parameters of a model, with the global gradient norm clipped (kernels/adamw.h).
#pragma once

#include <vector>

#include "core/autograd/parameter.h"
#include "optim/optim_config.h"

namespace octet {

class AdamW {
 public:
  // moments: bfloat16 or float32. The parameters must outlive this.
  AdamW(std::vector<Parameter*> parameters, const OptimConfig& config, DType moments);

  // sqrt of the sum of squares over all gradients, in float64 and a fixed order; not finite where any gradient is not.
  double gradient_norm();
  // One update with gradients times min(1, grad_clip / norm), of masters and of the forms that products read; then
  // gradients are 0. step: 1 for the first. stats: of what quantising did to the weights; null: none.
  void step(int64_t step, double lr, double norm, kernels::QuantizeStats* stats = nullptr);
  void clear_gradients();

  struct Moments {
    Tensor m, v;  // shape of the parameter
  };
  const Moments& moments(size_t parameter) const { return moments_[parameter]; }
  const std::vector<Parameter*>& parameters() const { return parameters_; }

 private:
  std::vector<Parameter*> parameters_;
  const OptimConfig& config_;
  std::vector<Moments> moments_;
};

}  // namespace octet
