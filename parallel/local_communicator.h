// N ranks as threads of one process: the double of a network for tests. Each message takes a time drawn from a seed, so
// that messages overtake each other as a network lets them; and a rank can be made to die, to stall, or to enter a
// collective that is not the one the others are in.
#pragma once

#include <exception>
#include <functional>
#include <vector>

#include "parallel/communicator.h"

namespace octet {

struct LocalFault {
  enum class Kind {
    kDie,       // the rank is gone, without a word, as by SIGKILL
    kStall,     // the rank never goes on, as in an endless loop
    kMiscount,  // the rank enters the next collective under the number of the one after it, as if it had left one out
  };
  int rank = 0;
  int64_t at_collective = 1;  // of this rank, over all of its communicators, counted from 1
  Kind kind = Kind::kDie;
};

struct LocalOptions {
  CommunicatorOptions communicator;
  uint64_t seed = 0;
  int64_t max_delay_us = 0;  // a message takes 0 to this many microseconds
  std::vector<LocalFault> faults;
};

// Thrown in a rank that a fault has killed, and at the end in one that it stalled. It is no Error: nothing may handle
// it, as nothing runs in a process that is dead.
struct LocalRankStopped {};

// Runs body on every rank, and returns when all have ended: for each what it threw, or null. A rank whose body throws
// an exception gives up as by Communicator::abort.
std::vector<std::exception_ptr> run_local_ranks(int ranks, const LocalOptions& options,
                                                const std::function<void(Communicator&)>& body);

// Throws what the lowest rank threw, if one did.
void rethrow_first(const std::vector<std::exception_ptr>& errors);

}  // namespace octet
