// The benchmarks that `octet bench` runs, by name.
#pragma once

#include <string>
#include <vector>

namespace octet {

std::vector<std::string> bench_names();
// What each takes, a line a benchmark.
std::string bench_help();
// Prints a table; returns 0, or 1 where an answer that was timed is wrong.
int run_bench(const std::string& name, const std::vector<std::string>& args);

}  // namespace octet
