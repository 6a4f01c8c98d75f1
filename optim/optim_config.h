// AdamW (kernels/adamw.h), the schedule of its learning rate, and gradient clipping.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/enum_names.h"
#include "core/base/problems.h"

namespace octet {

// The learning rate of step s = 1, 2 ... steps. The first warmup_steps rise linearly: lr * s / warmup_steps; then
//   kConstant   lr
//   kLinear     falls from lr to min_lr along a straight line, over decay_steps
//   kCosine     falls from lr to min_lr along half a cosine, over decay_steps
//   kWsd        lr until decay_start_step, then falls to min_lr along a straight line, over decay_steps
//   kMultiStep  lr * factor^(number of milestones <= s)
//   kDeepseekV3 lr until decay_start_step, half a cosine to min_lr over decay_steps, then min_lr; final_lr during the
//               last final_steps of the run (arXiv:2412.19437, section 4.2)
enum class Schedule { kConstant, kLinear, kCosine, kWsd, kMultiStep, kDeepseekV3 };

template <>
struct EnumNames<Schedule> {
  static constexpr std::pair<Schedule, std::string_view> values[] = {
      {Schedule::kConstant, "constant"}, {Schedule::kLinear, "linear"},        {Schedule::kCosine, "cosine"},
      {Schedule::kWsd, "wsd"},           {Schedule::kMultiStep, "multi_step"}, {Schedule::kDeepseekV3, "deepseek_v3"}};
};

struct OptimConfig {
  double lr = 1e-3;
  double min_lr = 0.0;
  Schedule schedule = Schedule::kCosine;
  int64_t warmup_steps = 0;
  int64_t decay_start_step = 0;
  int64_t decay_steps = 0;
  std::vector<int64_t> milestones;
  double factor = 0.316;  // two of these are a tenth: the step of DeepSeekMoE (arXiv:2401.06066)
  double final_lr = 0.0;
  int64_t final_steps = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;  // 0.999 forgets too slowly for language models (arXiv:2005.14165)
  double eps = 1e-8;
  double weight_decay = 0.1;
  double grad_clip = 1.0;

  void fields(auto&& visit) {
    visit("lr", lr, "highest learning rate");
    visit("min_lr", min_lr, "learning rate at the end of the decay");
    visit("schedule", schedule, "shape of the learning rate over the run");
    visit("warmup_steps", warmup_steps, "steps of the linear rise from 0 to lr");
    visit("decay_start_step", decay_start_step,
          "first step of the decay; wsd and deepseek_v3 read it; 0 means the decay ends with the run");
    visit("decay_steps", decay_steps,
          "steps of the decay; 0 means up to the end of the run for linear and cosine, its last tenth for the others");
    visit("milestones", milestones, "steps at which multi_step multiplies the learning rate by factor, rising");
    visit("factor", factor, "what multi_step multiplies by");
    visit("final_lr", final_lr, "learning rate of the last final_steps; only deepseek_v3 reads it");
    visit("final_steps", final_steps, "steps at final_lr; only deepseek_v3 reads it");
    visit("beta1", beta1, "decay of the first moment per step");
    visit("beta2", beta2, "decay of the second moment per step");
    visit("eps", eps, "added to the root of the second moment");
    visit("weight_decay", weight_decay, "decoupled decay, times the learning rate, of weight matrices");
    visit("grad_clip", grad_clip, "largest global norm of the gradient; 0 turns clipping off");
  }

  // The decay's first step and length in a run of `steps`.
  int64_t decay_length(int64_t steps) const {
    if (decay_steps > 0) return decay_steps;
    if (schedule == Schedule::kLinear || schedule == Schedule::kCosine) {
      return steps > warmup_steps ? steps - warmup_steps : 0;
    }
    return (steps + 9) / 10;
  }
  int64_t decay_start(int64_t steps) const {
    if (schedule == Schedule::kLinear || schedule == Schedule::kCosine) return warmup_steps;
    if (decay_start_step > 0) return decay_start_step;
    const int64_t start = steps - decay_length(steps) - (schedule == Schedule::kDeepseekV3 ? final_steps : 0);
    return start > warmup_steps ? start : warmup_steps;
  }

  void validate(Problems& problems, int64_t steps) const {
    problems.require(lr > 0.0 && lr <= 10.0, "lr", "is {}; wanted more than 0, at most 10", lr);
    problems.require(min_lr >= 0.0 && min_lr <= lr, "min_lr", "is {}; wanted 0 to optim.lr, {}", min_lr, lr);
    problems.require(warmup_steps >= 0 && warmup_steps <= steps, "warmup_steps", "is {}; wanted 0 to train.steps, {}",
                     warmup_steps, steps);
    problems.require(decay_start_step >= 0 && decay_start_step <= steps, "decay_start_step",
                     "is {}; wanted 0 to train.steps, {}", decay_start_step, steps);
    if (decay_start_step > 0) {
      problems.require(decay_start_step >= warmup_steps, "decay_start_step",
                       "is {}; wanted optim.warmup_steps, {}, or more", decay_start_step, warmup_steps);
    }
    problems.require(decay_steps >= 0 && decay_steps <= steps, "decay_steps", "is {}; wanted 0 to train.steps, {}",
                     decay_steps, steps);
    int64_t previous = 0;
    for (const int64_t milestone : milestones) {
      if (!problems.require(milestone > previous, "milestones", "has {} after {}; wanted steps from 1 on, each larger",
                            milestone, previous)) {
        break;
      }
      previous = milestone;
    }
    problems.require(schedule != Schedule::kMultiStep || !milestones.empty(), "milestones",
                     "is empty; wanted at least one step, since optim.schedule is multi_step");
    problems.require(factor > 0.0 && factor <= 1.0, "factor", "is {}; wanted more than 0, at most 1", factor);
    problems.require(final_lr >= 0.0 && final_lr <= lr, "final_lr", "is {}; wanted 0 to optim.lr, {}", final_lr, lr);
    problems.require(final_steps >= 0 && final_steps <= steps, "final_steps", "is {}; wanted 0 to train.steps, {}",
                     final_steps, steps);
    problems.require(beta1 >= 0.0 && beta1 < 1.0, "beta1", "is {}; wanted 0 or more, less than 1", beta1);
    problems.require(beta2 >= 0.0 && beta2 < 1.0, "beta2", "is {}; wanted 0 or more, less than 1", beta2);
    problems.require(eps > 0.0 && eps < 1.0, "eps", "is {}; wanted more than 0 and less than 1", eps);
    problems.require(weight_decay >= 0.0 && weight_decay < 1.0 / (lr > 0.0 ? lr : 1.0), "weight_decay",
                     "is {}; wanted 0 or more, less than 1 / optim.lr", weight_decay);
    problems.require(grad_clip >= 0.0, "grad_clip", "is {}; wanted 0 (off) or more", grad_clip);
  }
};

}  // namespace octet
