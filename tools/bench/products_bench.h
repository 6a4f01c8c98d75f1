// The products of a configuration's layers in FP8 and in bfloat16, as precision.products: faster times them.
#pragma once

#include <string>
#include <vector>

namespace octet {

// args: CONFIG, repeats=N, section.key=value... Prints a row for each kind of layer, forward and backward with all that
// quantising takes: milliseconds in each format, the median of the repeats, their ratio, and which is faster; then the
// same by what precision.products names. Nothing is read from or written to the file of times.
int bench_products(const std::vector<std::string>& args);

}  // namespace octet
