// The mathematics of kernels/cpu/simd.inc, one kernel for all functions of one argument, and what kernels are made of
// there, in exp_simd.inc and in fp8_simd.inc: each on 16 lanes x and on s, which is x with its pairs swapped.
#pragma once

#include "kernels/dispatch.h"

namespace octet::kernels {

struct SimdProbe {
  enum Function {
    kExp,
    kExpTo88,         // exp_to_88 of s and x: the latter
    kExpTo88Flushed,  // the same where subnormals are flushed
    kLog,
    kSigmoid,
    kSwapPairs,
    kTranspose,
    kSumFloat64,
    kMax,            // max(x, s)
    kMin,            // min(x, s)
    kReduceMax,      // reduce_max(x)
    kSelect,         // x where x < s, else s
    kCount,          // lanes with x < s, and 100 times those with a NaN
    kToInteger,      // to_i32(x), as bits
    kFromInteger,    // to_f32 of the bits
    kBFloat16,       // through memory as bfloat16
    kIntegers,       // min_i32, max_i32, greater_i32, equal_i32, shifts and sums of the bits of x and s
    kReduceInteger,  // reduce_max_i32 of the bits
    kBytes,          // max_bytes(x + s, x), of the bits
    kLowBytes,       // the low bytes of the bits through memory
    kE4m3,           // codes from the low bytes
    kEncodeE4m3,     // codes of x
    kE4m3Lines,      // codes from the low bytes, sixteen lines of them transposed
  };
  Function function;
  const float* x;
  float* y;
  int64_t n;  // a multiple of 16; of 256 for kTranspose and kE4m3Lines
};
namespace cpu {
void simd_probe(const SimdProbe& args, Stream& stream);
}  // namespace cpu

}  // namespace octet::kernels
