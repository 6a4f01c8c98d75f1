// Who a process is, for messages to people, and whether it still lives, for waits on it.
#pragma once

#include <cstdint>
#include <string>

namespace octet {

// Plain bytes, so that ranks can send it to each other.
struct ProcessIdentity {
  char host[64] = {};      // as gethostname says, cut to fit
  char machine[128] = {};  // of the running kernel and the process namespace: process numbers mean the same where equal
  int64_t pid = 0;
  uint64_t start_ticks = 0;  // after the boot; the process number is used again, this pair is not
};
ProcessIdentity this_process();

enum class PeerState {
  kUnknown,  // on another machine, or not to be seen from here
  kRunning,
  kStopped,  // by a signal or a debugger
  kGone,     // it has ended, or ended and was not reaped yet
};
PeerState state_of(const ProcessIdentity& process);

}  // namespace octet
