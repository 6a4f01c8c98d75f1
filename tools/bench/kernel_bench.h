// The kernels of a training step that move more than they compute, each against a copy of as many bytes on the same
// device, and the matrix products. Prints a table; returns 0, or 1 where a GPU's answers are not those of the CPU.
#pragma once

#include <string>
#include <vector>

namespace octet {

// args: device=cpu|cuda, tokens=N, hidden=N, experts=N, top_k=N, expert_hidden=N, vocab=N, repeats=N
int bench_kernels(const std::vector<std::string>& args);

}  // namespace octet
