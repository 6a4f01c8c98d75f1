// The products of experts, forward and for the gradients of their inputs and weights, in FP8 and bfloat16, beside a
// dense bfloat16 product of as many FLOPs (on a GPU that of cuBLASLt). Prints a table; returns 0, or 1 where an answer
// that was timed is wrong: FP8 must have the bits of the CPU and be near the product of the numbers before they were
// quantised.
#pragma once

#include <string>
#include <vector>

namespace octet {

// args: device=cpu|cuda, shapes GxMxNxK (G experts, M rows each), repeats=N
int bench_grouped_gemm(const std::vector<std::string>& args);

}  // namespace octet
