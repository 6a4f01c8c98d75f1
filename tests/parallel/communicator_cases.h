// What every communicator must do, as functions that each rank runs: in threads, under mpirun, or alone. A case throws
// where something is wrong, since the ranks of a case may be threads and Catch's assertions are for one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace octet::test {

struct CommunicatorCase {
  std::string name;
  void (*run)(Communicator&);
};
const std::vector<CommunicatorCase>& communicator_cases();

// The bits of sums of every element type and of sizes on both sides of each limit, the same on every rank.
std::vector<uint64_t> reduced_bits(Communicator& communicator);

}  // namespace octet::test
