// The learning rate of each step; optim/optim_config.h says what each schedule is.
#pragma once

#include "optim/optim_config.h"

namespace octet {

// step: 1 to steps.
double learning_rate(const OptimConfig& config, int64_t step, int64_t steps);

}  // namespace octet
