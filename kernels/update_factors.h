// What differs from one optimizer step to the next, in the memory of the device that updates: the host writes what it
// knows before the step, and the device adds what the gradients say. So nobody waits for a number of the step, and the
// launches of one step are those of every other.
#pragma once

#include <array>
#include <bit>
#include <cmath>

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

struct UpdateFactors {
  float lr = 0;
  float correct_m = 1, correct_v = 1;  // 1 / (1 - beta^step)
  float grad_scale = 1;
  int64_t is_left_out = 0;  // 1: the step changes nothing

  // step: 1 for the first. Near 1 - 1 at the first steps: float64, rounded once.
  static UpdateFactors of_step(int64_t step, float lr, float beta1, float beta2) {
    const auto correct = [step](float beta) { return float(1.0 / (1.0 - std::pow(double(beta), double(step)))); };
    return {.lr = lr, .correct_m = correct(beta1), .correct_v = correct(beta2)};
  }
  // As int64 numbers, for a tensor.
  std::array<int64_t, 3> words() const { return std::bit_cast<std::array<int64_t, 3>>(*this); }
};

struct JudgeUpdate {
  // norm = sqrt(sum of squares, in their order, in float64)
  // grad_scale = grad_clip / norm where that is less than 1 and grad_clip > 0, else 1
  // is_left_out = 1 where a loss or the norm is not finite, or a kernel of a GPU left a FaultRecord; else 0
  ConstView losses;        // any number, float32
  ConstView squares;       // [S] int64: the bits of float64 numbers
  double grad_clip;        // the largest norm; 0: any
  UpdateFactors* factors;  // those two are written

  KernelCost cost() const { return {.name = "judge_update", .bytes = bytes_of(losses, squares)}; }
};
namespace cpu {
void judge_update(const JudgeUpdate& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void judge_update(const JudgeUpdate& args, Stream& stream);
}  // namespace cuda
inline void judge_update(const JudgeUpdate& args, Stream& stream) {
  dispatch<cpu::judge_update, cuda::judge_update>(args, stream);
}

}  // namespace octet::kernels
