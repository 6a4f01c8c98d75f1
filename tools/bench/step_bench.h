// A whole training step of a configuration, on made-up tokens.
#pragma once

#include <string>
#include <vector>

namespace octet {

// args: CONFIG, steps=N, warmup=N, threads=N|all, link_delay_us=N, key.of.config=value..., phases,
// json; of ranks where mpirun started them. Prints the median step, its
// speed and share of the machine's peak, and the peak memory of the process; with `phases` also a row for each kernel:
// time, operations, bytes, and measured time over the least that the machine's peaks allow; with `json` one record
// only.
int bench_step(const std::vector<std::string>& args);

}  // namespace octet
