// Runs one case of this very test program on several ranks, under the real mpirun.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "parallel/mpi_communicator.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {

struct MpiRun {
  int code = -1;  // of mpirun; 128 + signal where one ended it
  std::string text;
  double seconds = 0;
};

// mpirun -n ranks OCTET_TEST_PROGRAM NAME
inline MpiRun run_mpi(int ranks, const std::string& name) {
  const TemporaryDirectory directory;
  const std::string log = directory / "log";
  const auto began = std::chrono::steady_clock::now();
  std::fflush(stdout);  // or the child would write what is in the buffer once more
  const pid_t pid = ::fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    if (std::freopen(log.c_str(), "w", stdout) == nullptr || ::dup2(1, 2) < 0) ::_exit(126);
    ::setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    ::setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    ::setenv("ASAN_OPTIONS", "detect_leaks=0", 1);  // Open MPI keeps what it has until its process ends
    const std::string count = std::to_string(ranks);
    ::execl(OCTET_MPIEXEC, OCTET_MPIEXEC, "--oversubscribe", "-n", count.c_str(), OCTET_TEST_PROGRAM, name.c_str(),
            nullptr);
    ::_exit(127);
  }
  int status = 0;
  REQUIRE(::waitpid(pid, &status, 0) == pid);
  MpiRun run;
  run.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  run.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  run.text = real_file_system().read_text(log);
  return run;
}

// In a rank: says what happened, and ends all.
[[noreturn]] inline void end_with(const Error& error) {
  std::fputs(error.block().c_str(), stderr);
  mpi_abort(error.code());
}

inline bool is_skipped() {
  if (is_mpi_built() && std::string(OCTET_MPIEXEC).starts_with("/")) return false;
  WARN("skipped: this build has no MPI, or there is no mpirun");
  return true;
}

}  // namespace octet::test
