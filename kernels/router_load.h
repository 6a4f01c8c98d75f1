// What routers chose, and what follows from it at the end of a step. The counts stay on the device that made them.
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"
#include "kernels/update_factors.h"

namespace octet::kernels {

struct CountChoices {
  // counts[e] += #{(t, k) : indices[t,k] = e}
  ConstView indices;  // [T, K] int32 in [0, E)
  View counts;        // [E] int64, added to

  KernelCost cost() const { return {.name = "count_choices", .bytes = bytes_of(indices, counts, counts)}; }
};
struct UpdateRouterBias {
  // Bias-based load balancing (arXiv:2408.15664), with the load of a whole step:
  //   share[i] = counts[i] / total;   bias[i] += rate * (sign(total - E counts[i]) - center)
  //   center = mean_i sign(total - E counts[i]) where centered, else 0.   Where the total is 0, or the step is
  // left out, nothing changes.
  ConstView counts;  // [E] int64
  View share;        // [E] float32
  View bias;         // [E] float32
  float rate;        // 0: the bias stays as it is
  bool centered;
  const UpdateFactors* factors = nullptr;  // null: the step is not left out

  KernelCost cost() const { return {.name = "update_router_bias", .bytes = bytes_of(counts, share, bias, bias)}; }
};
namespace cpu {
void count_choices(const CountChoices& args, Stream& stream);
void update_router_bias(const UpdateRouterBias& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void count_choices(const CountChoices& args, Stream& stream);
void update_router_bias(const UpdateRouterBias& args, Stream& stream);
}  // namespace cuda
inline void count_choices(const CountChoices& args, Stream& stream) {
  dispatch<cpu::count_choices, cuda::count_choices>(args, stream);
}
inline void update_router_bias(const UpdateRouterBias& args, Stream& stream) {
  dispatch<cpu::update_router_bias, cuda::update_router_bias>(args, stream);
}

}  // namespace octet::kernels
