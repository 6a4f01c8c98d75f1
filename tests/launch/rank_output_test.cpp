// Each case in a process of its own, since what RankOutput does lasts until the process ends.
#include "tools/train/rank_output.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>

#include "core/base/log.h"
#include "tests/support/temporary_directory.h"
#include "tools/train/end_with_parent.h"

namespace octet::test {
namespace {

// What the process of `work` wrote to the terminal, that is to a file in place of stdout and stderr.
std::string terminal_of(const std::function<void()>& work) {
  const TemporaryDirectory directory;
  const std::string file = directory / "terminal";
  std::fflush(stdout);
  const pid_t pid = ::fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    const int fd = ::open(file.c_str(), O_CREAT | O_WRONLY | O_APPEND, 0600);
    ::dup2(fd, 1), ::dup2(fd, 2);
    work();
    std::fflush(stdout);
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(pid, &status, 0) == pid);
  REQUIRE(WIFEXITED(status));
  REQUIRE(WEXITSTATUS(status) == 0);
  return real_file_system().read_text(file);
}

}  // namespace

TEST_CASE("a rank other than 0 writes to its file, each start after a line of its own", "[launch][rank_output]") {
  const TemporaryDirectory run;
  for (int start = 0; start < 2; ++start) {
    const std::string terminal = terminal_of([&] {
      std::puts("before");
      const RankOutput output(3, run / "deep/run");
      std::puts("results");
      log_info("a log line");
      std::fputs("octet: error: a fault\n", stderr);
    });
    CHECK(terminal == "before\n");
  }
  CHECK(RankOutput::path_of(3, run / "deep/run") == run / "deep/run/logs/rank-003.log");
  const std::string log = real_file_system().read_text(run / "deep/run/logs/rank-003.log");
  INFO(log);
  size_t starts = 0;
  for (size_t at = log.find("==== "); at != std::string::npos; at = log.find("==== ", at + 1)) ++starts;
  CHECK(starts == 2);
  CHECK_THAT(log,
             Catch::StartsWith("==== 20") && Catch::Contains(" UTC, rank 3 on host ") && Catch::Contains(", process "));
  const size_t results = log.find("\nresults\n"), line = log.find("info a log line\n"),
               error = log.find("octet: error");
  REQUIRE(results != std::string::npos);
  CHECK(results < line);
  CHECK(line < error);
  CHECK(error != std::string::npos);
}

TEST_CASE("rank 0 keeps the terminal, and its log lines go to its file too", "[launch][rank_output]") {
  const TemporaryDirectory run;
  const std::string terminal = terminal_of([&] {
    const RankOutput output(0, run.path());
    std::puts("results");
    std::fflush(stdout);
    log_warning("a log line");
    log_debug("too small");
  });
  CHECK_THAT(terminal, Catch::StartsWith("results\n") && Catch::Contains("a log line\n"));
  const std::string log = real_file_system().read_text(run / "logs/rank-000.log");
  CHECK_THAT(log, Catch::Contains("rank 0 on host ") && Catch::Contains("warning a log line\n") &&
                      !Catch::Contains("results") && !Catch::Contains("too small") && !Catch::Contains("\033"));
}

TEST_CASE("a log file that cannot be had costs a warning", "[launch][rank_output]") {
  const int rank = GENERATE(0, 1);
  const TemporaryDirectory run;
  real_file_system().write_atomically(run / "file", "");
  const std::string terminal = terminal_of([&] {
    const RankOutput output(rank, run / "file");  // no directory can be made there
    std::puts("results");
  });
  CHECK_THAT(terminal, Catch::Contains("has no log file") && Catch::Contains("results\n"));
  real_file_system().make_directories(RankOutput::path_of(rank, run.path()));  // a directory in its place
  CHECK_THAT(terminal_of([&] {
               const RankOutput output(rank, run.path());
               std::puts("results");
             }),
             Catch::Contains("has no log file") && Catch::Contains("results\n"));
}

TEST_CASE("a process that ends with its parent does, even while it is stopped", "[launch][rank_output]") {
  const bool is_stopped = GENERATE(false, true);
  CAPTURE(is_stopped);
  int pipe[2];
  REQUIRE(::pipe(pipe) == 0);
  const pid_t parent = ::fork();
  REQUIRE(parent >= 0);
  if (parent == 0) {
    int child_ready[2];
    if (::pipe(child_ready) != 0) ::_exit(1);
    if (::fork() == 0) {  // holds the pipe to the test open as long as it lives
      end_with_parent();
      ::kill(::getpid(), SIGCONT);  // which a living parent makes harmless
      if (::write(child_ready[1], "x", 1) != 1) ::_exit(1);
      if (is_stopped) ::raise(SIGSTOP);
      while (true) ::pause();
    }
    char byte = 0;
    if (::read(child_ready[0], &byte, 1) != 1) ::_exit(1);
    ::usleep(is_stopped ? 200'000 : 0);
    ::_exit(0);
  }
  ::close(pipe[1]);
  int status = 0;
  REQUIRE(::waitpid(parent, &status, 0) == parent);
  CHECK(status == 0);
  ::alarm(20);  // ends the test where the process does not
  char byte = 0;
  CHECK(::read(pipe[0], &byte, 1) == 0);
  ::alarm(0);
  ::close(pipe[0]);
}

}  // namespace octet::test
