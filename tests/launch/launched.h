// octet launch in a process of its own, over the real mpirun.
#pragma once

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "tests/support/temporary_directory.h"
#include "tools/launch/launcher.h"

namespace octet::test {

class Launched {
 public:
  // stdout_fd: where the launch writes its results in place of what out() returns; -1: nowhere else.
  explicit Launched(const LaunchPlan& plan, int stdout_fd = -1) {
    start_ = std::chrono::steady_clock::now();
    std::fflush(stdout);
    pid_ = ::fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      ::setenv("ASAN_OPTIONS", "detect_leaks=0", 1);  // Open MPI keeps what it has until its process ends
      const int out =
          stdout_fd >= 0 ? stdout_fd : ::open((directory_ / "out").c_str(), O_CREAT | O_WRONLY | O_APPEND, 0600);
      const int err = ::open((directory_ / "err").c_str(), O_CREAT | O_WRONLY | O_APPEND, 0600);
      ::dup2(out, 1), ::dup2(err, 2);
      int code = 0;
      try {
        code = launch(plan);
      } catch (const Error& error) {
        std::fputs(error.block().c_str(), stderr);
        code = error.code();
      }
      std::fflush(stderr);
      ::_exit(code);
    }
  }
  ~Launched() {
    if (pid_ > 0) ::kill(pid_, SIGKILL), ::waitpid(pid_, nullptr, 0);
  }
  Launched(const Launched&) = delete;
  Launched& operator=(const Launched&) = delete;

  pid_t pid() const { return pid_; }
  void signal(int number) const { ::kill(pid_, number); }
  // Its exit code, 128 + signal where one ended it. A launch that does not end fails the test.
  int wait(double limit_s = 120) {
    int status = 0;
    while (::waitpid(pid_, &status, WNOHANG) == 0) {
      if (seconds() > limit_s) FAIL("the launch has not ended after " << limit_s << " s: " << err());
      ::usleep(5'000);
    }
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  bool has_ended() const {
    siginfo_t info{};
    return ::waitid(P_PID, id_t(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid_;
  }
  std::string out() const { return real_file_system().read_text(directory_ / "out"); }
  std::string err() const { return real_file_system().read_text(directory_ / "err"); }
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  TemporaryDirectory directory_;
  pid_t pid_ = -1;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace octet::test
