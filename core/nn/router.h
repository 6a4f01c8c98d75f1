// Chooses the experts of each token and keeps their load even (kernels/router.h; arXiv:2408.15664).
#pragma once

#include <vector>

#include "core/nn/context.h"
#include "core/nn/model_config.h"
#include "core/ops/linear.h"
#include "core/ops/route.h"
#include "core/tensor/transfer.h"
#include "kernels/update_factors.h"

namespace octet {

class Router {
 public:
  // prefix: "model.layers.0.mlp.gate."
  Router(const std::string& prefix, const ModelConfig& config, const ModelContext& context);

  // input: [T, D]. replayed: [T, K] int32 to send tokens where an earlier pass sent them, or not defined.
  Routing forward(const LinearInput& input, const Tensor& replayed = {});

  // Choices per expert since the last begin_step, over all micro-batches. On a GPU the host waits for it.
  std::vector<int64_t> load() const;
  // Of all ranks, in place of this one's: before end_step.
  void set_load(const std::vector<int64_t>& load);
  struct Losses {
    float balance = 0, z = 0;
  };
  Losses losses() const;  // waits as load() does
  // Both, on their way to the host: for a caller that waits once for all routers.
  class Reading {
   public:
    std::vector<int64_t> load() const;
    Losses losses() const;

   private:
    friend class Router;
    Readback load_, losses_;
  };
  Reading read() const;
  // Before the first micro-batch of an optimizer step: load and losses are 0.
  void begin_step();
  // After the last, with the load of the whole global batch:
  //   bias[i] += rate * sign(mean(load) - load[i]), then minus the mean of that step where bias_centered
  // and the load becomes the one that aux_loss global_batch balances against. factors: nothing changes where they say
  // that the step is left out.
  void end_step(const kernels::UpdateFactors* factors);

  const Tensor& bias() const { return bias_; }                   // [E] float32, saved as `bias_name`
  const Tensor& last_load_share() const { return last_share_; }  // [E] float32, all 1/E before the first step
  const std::string& prefix() const { return prefix_; }

  void visit_parameters(auto&& visit) { visit(gate_); }

 private:
  std::string prefix_;
  const MoeConfig& config_;
  const ModelContext& context_;
  Parameter gate_;  // [E, D]
  Tensor bias_, last_share_;
  Tensor load_;    // [E] int64
  Tensor losses_;  // [2] float32: balance, z
};

}  // namespace octet
