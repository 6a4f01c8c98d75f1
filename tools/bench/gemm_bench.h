// Benchmarks of the matrix products and of quantisation. Each prints a table to stdout: median time of several repeats
// with cold caches, spread, speed, share of what the arithmetic units were measured to do, and the ratio to a rival;
// and checks the answers it timed. They return 0, or 1 where an answer was wrong.
#pragma once

#include <string>
#include <vector>

namespace octet {

// args: shapes MxNxK, repeats=N, threads=1|all, caches=cold|warm: whether a call's operands are in memory or where the
// call before left them. Rivals: Eigen's float32 product of the same shape.
int bench_gemm(const std::vector<std::string>& args);
// args: shapes RxC, repeats=N, threads=1|all, caches=cold|warm. Rival: a copy of the same bytes.
int bench_quantise(const std::vector<std::string>& args);

}  // namespace octet
