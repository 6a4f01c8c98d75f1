// The mathematics of kernels/cpu/simd.inc, one kernel for all functions of one argument.
#pragma once

#include "kernels/dispatch.h"

namespace octet::kernels {

struct SimdProbe {
  enum Function { kExp, kLog, kSigmoid, kSwapPairs, kTranspose, kSumFloat64 };
  Function function;
  const float* x;
  float* y;
  int64_t n;  // a multiple of 16; of 256 for kTranspose
};
namespace cpu {
void simd_probe(const SimdProbe& args, Stream& stream);
}  // namespace cpu

}  // namespace octet::kernels
