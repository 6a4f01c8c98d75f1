// One process of a launch, from the meeting of all ranks to their exit codes: agreement that all run the same, one
// error for all, and one voice. For commands that mpirun or `octet launch` may start.
#pragma once

#include <functional>
#include <string>

#include "parallel/communicator.h"
#include "tools/train/config.h"

namespace octet {

struct SessionOptions {
  std::string run_dir;  // where each rank's log lies (tools/train/rank_output.h); empty: ranks other than 0 say nothing
  CommunicatorOptions communicator = {};
  double meet_limit_s = 60;  // the longest wait for the other ranks to join, seconds
};

// Meets the other ranks and runs body on all of them; the result is its exit code. An error of one rank is the end of
// all: rank 0 shows it and the others write it to their log, and its code is the result. check comes first: what it
// throws on any rank ends all, before anything is written. All ranks come to the end together. A body that saves when
// it is told to stop needs a StopSignal from before this call; any other is ended by the signal itself.
int run_as_rank(const SessionOptions& options, const std::function<void()>& check,
                const std::function<int(Communicator& world)>& body);

// Threads of this rank where it may choose: the cores of the host over its ranks, at least one.
int threads_of_rank();

// Throws kConfig on every rank where one has another configuration than rank 0, or is another build of this program.
void require_same_program(Communicator& world, const Config& config);

}  // namespace octet
