#include "parallel/process_identity.h"

#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <csignal>
#include <thread>

namespace octet::test {

TEST_CASE("a process is seen to run, to be stopped and to be gone", "[parallel]") {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const ProcessIdentity me = this_process();
    if (::write(ends[1], &me, sizeof me) != ssize_t(sizeof me)) ::_exit(1);
    for (;;) ::pause();
  }
  ProcessIdentity process;
  REQUIRE(::read(ends[0], &process, sizeof process) == ssize_t(sizeof process));
  ::close(ends[0]), ::close(ends[1]);
  CHECK(process.pid == child);
  CHECK(std::string(process.host) == this_process().host);

  const auto becomes = [&](PeerState wanted) {
    for (int i = 0; i < 2000 && state_of(process) != wanted; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return state_of(process) == wanted;
  };
  CHECK(state_of(this_process()) == PeerState::kRunning);
  CHECK(becomes(PeerState::kRunning));
  ::kill(child, SIGSTOP);
  CHECK(becomes(PeerState::kStopped));
  ::kill(child, SIGCONT);
  CHECK(becomes(PeerState::kRunning));
  ::kill(child, SIGKILL);
  CHECK(becomes(PeerState::kGone));  // before it is reaped
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  CHECK(state_of(process) == PeerState::kGone);

  // The same number on another machine, and of a process that started at another time.
  ProcessIdentity elsewhere = this_process(), earlier = this_process();
  elsewhere.machine[0] ^= 1;
  earlier.start_ticks -= 1;
  CHECK(state_of(elsewhere) == PeerState::kUnknown);
  CHECK(state_of(earlier) == PeerState::kGone);
}

}  // namespace octet::test
