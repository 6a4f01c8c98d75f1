// One mixture-of-experts layer, forward and backward, in bfloat16 and in block FP8, in turn in one run: time, share of
// the floor that its operations set, memory, and whether the two computed the same. Routing is forced to be balanced,
// as in the figures that others publish. Prints a table; returns 0, or 1 where FP8 is too far from bfloat16.
#pragma once

#include <string>
#include <vector>

namespace octet {

// args: device=cpu|cuda, tokens=N, hidden=N, expert_hidden=N, experts=N, top_k=N, repeats=N. Without sizes, on a GPU:
// the shapes for which arXiv:2512.14080 shows what one H100 reaches.
int bench_moe_layer(const std::vector<std::string>& args);

}  // namespace octet
