#include "kernels/update_factors.h"

#include <algorithm>

namespace octet::kernels {

void cpu::judge_update(const JudgeUpdate& args, Stream&) {
  const double* squares = args.squares.data<double>();
  double sum = 0;
  for (int64_t i = 0; i < args.squares.num_elements(); ++i) sum += squares[i];
  const double norm = std::sqrt(sum);
  const float* losses = args.losses.data<float>();
  const bool is_finite = std::isfinite(norm) && std::all_of(losses, losses + args.losses.num_elements(),
                                                            [](float loss) { return std::isfinite(loss); });
  args.factors->grad_scale = args.grad_clip > 0 && norm > args.grad_clip ? float(args.grad_clip / norm) : 1.0f;
  args.factors->is_left_out = is_finite ? 0 : 1;
}

}  // namespace octet::kernels
