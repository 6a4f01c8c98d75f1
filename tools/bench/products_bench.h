// The products of a configuration's layers in FP8 and in bfloat16, as precision.products: faster times them.
#pragma once

#include <string>
#include <vector>

namespace octet {

// args: CONFIG, repeats=N, section.key=value... Prints the table of tools/train/faster_products.h with the medians of
// the repeats. Nothing is read from or written to the file of times.
int bench_products(const std::vector<std::string>& args);

}  // namespace octet
