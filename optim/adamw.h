// AdamW over the parameters of a model, with the global gradient norm clipped (kernels/adamw.h). Each rank of a run
// holds the moments of its own rows of each parameter (core/autograd/parameter.h) and updates those.
#pragma once

#include <span>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/tensor/transfer.h"
#include "kernels/update_factors.h"
#include "optim/optim_config.h"
#include "parallel/communicator.h"

namespace octet {

class AdamW {
 public:
  // moments: bfloat16 or float32. The parameters must outlive this. world: all ranks of the run; each slab of the model
  // is owned by one of them. Null: this rank is alone.
  AdamW(std::vector<Parameter*> parameters, const OptimConfig& config, DType moments, Communicator* world = nullptr);

  // sqrt of the sum of squares over all gradients of the model, of which each rank has summed those of its own rows;
  // the same on every rank. In float64, slab by slab, then over slabs in the order of the model: a gradient has one
  // norm, whatever ranks it lies on. Not finite where any gradient is not.
  double gradient_norm();
  // One update with gradients times min(1, grad_clip / norm), of the own rows of masters and of the forms that products
  // read; then gradients are 0. Nothing changes where the norm is not finite. step: 1 for the first. stats: of what
  // quantising did to the weights; null: none.
  void step(int64_t step, double lr, kernels::QuantizeStats* stats = nullptr);

  // Its parts, in their order: on a GPU they are asked for, and the host waits for none. prepare() alone writes to
  // device memory from the host.
  void prepare(int64_t step, double lr);
  // The sums of squares that the norm is the root of: of each slab of the model, 0 where another rank owns it.
  void measure();
  class SquareSums {
   public:
    std::vector<double> wait() const;  // until a GPU has made them

   private:
    friend class AdamW;
    Readback bits_;  // of float64 numbers, in the dtype of their size
  };
  SquareSums square_sums() const;
  void set_square_sums(const std::vector<double>& sums);  // of all ranks, in place of this one's
  static double norm_of(std::span<const double> sums);
  // Decides how much of the gradients is taken, and whether the step is left out: for a norm or one of `losses`
  // (float32) that is not finite. See kernels/update_factors.h, where the answer lies.
  void judge(const Tensor& losses);
  const kernels::UpdateFactors* factors() const;
  void apply(kernels::QuantizeStats* stats = nullptr);  // gradients stay as they are
  void clear_gradients();

  struct Moments {
    Tensor m, v;  // of Parameter::own_shape()
  };
  const Moments& moments(size_t parameter) const { return moments_[parameter]; }
  const std::vector<Parameter*>& parameters() const { return parameters_; }

 private:
  std::vector<Parameter*> parameters_;
  const OptimConfig& config_;
  std::vector<Moments> moments_;
  Tensor factors_;  // the bytes of kernels::UpdateFactors, as int64
  Tensor squares_;  // [slabs] the bits of float64, as int64
  Communicator* world_;
};

}  // namespace octet
