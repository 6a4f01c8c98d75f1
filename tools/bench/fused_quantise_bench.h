// The kernels of a layer of experts that quantise while they do something else, and those that move rows of codes: each
// against a copy of as many bytes on the same device. Prints a table; returns 0, or 1 where an answer is wrong.
#pragma once

#include <string>
#include <vector>

namespace octet {

// args: device=cpu|cuda, tokens=N, hidden=N, experts=N, top_k=N, expert_hidden=N, repeats=N. On a GPU the sizes are
// those of DeepSeek-V3 (arXiv:2412.19437) without sizes.
int bench_fused_quantise(const std::vector<std::string>& args);

}  // namespace octet
