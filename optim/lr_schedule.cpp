#include "optim/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace octet {

double learning_rate(const OptimConfig& config, int64_t step, int64_t steps) {
  if (step <= config.warmup_steps) return config.lr * double(step) / double(config.warmup_steps);
  if (config.schedule == Schedule::kConstant) return config.lr;
  if (config.schedule == Schedule::kMultiStep) {
    const auto passed = std::count_if(config.milestones.begin(), config.milestones.end(),
                                      [step](int64_t milestone) { return milestone <= step; });
    return config.lr * std::pow(config.factor, double(passed));
  }
  if (config.schedule == Schedule::kDeepseekV3 && step > steps - config.final_steps) return config.final_lr;
  // How far the decay has come, 0 to 1.
  const int64_t length = config.decay_length(steps);
  const double done = length == 0 ? (step > config.decay_start(steps) ? 1.0 : 0.0)
                                  : std::clamp(double(step - config.decay_start(steps)) / double(length), 0.0, 1.0);
  const bool cosine = config.schedule == Schedule::kCosine || config.schedule == Schedule::kDeepseekV3;
  const double left = cosine ? 0.5 * (1.0 + std::cos(std::numbers::pi * done)) : 1.0 - done;
  return config.min_lr + (config.lr - config.min_lr) * left;
}

}  // namespace octet
