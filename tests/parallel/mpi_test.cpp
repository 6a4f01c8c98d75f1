// The communicator over real mpirun. The cases with "[.rank]" are what the ranks run; the others start them, in a
// process of their own, with all that a test may want of mpirun in its environment.
#include "parallel/mpi_communicator.h"

#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <csignal>
#include <thread>

#include "parallel/local_communicator.h"
#include "tests/parallel/communicator_cases.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

struct Run {
  int code = -1;  // of mpirun; 128 + signal where one ended it
  std::string text;
  double seconds = 0;
};

// mpirun -n ranks test_parallel NAME
Run run_mpi(int ranks, const std::string& name) {
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
    ::execl(OCTET_MPIEXEC, OCTET_MPIEXEC, "--oversubscribe", "-n", count.c_str(), OCTET_BINARY_DIR "/test_parallel",
            name.c_str(), nullptr);
    ::_exit(127);
  }
  int status = 0;
  REQUIRE(::waitpid(pid, &status, 0) == pid);
  Run run;
  run.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  run.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  run.text = real_file_system().read_text(log);
  return run;
}

bool is_skipped() {
  if (is_mpi_built() && std::string(OCTET_MPIEXEC).starts_with("/")) return false;
  WARN("skipped: this build has no MPI, or there is no mpirun");
  return true;
}

// Prints an error as the program would, and ends all ranks with its code.
[[noreturn]] void end_with(const Error& error) {
  std::fputs(error.block().c_str(), stderr);
  mpi_abort(error.code());
}

}  // namespace

TEST_CASE("a process by itself does not touch MPI", "[parallel][mpi]") {
  CHECK_FALSE(is_mpi_rank());
  const Error error = error_of([] { make_mpi_communicator({}); });
  CHECK(error.code() == 2);
  CHECK_THAT(error.report().what, Catch::Contains(is_mpi_built() ? "start it with mpirun" : "has no MPI"));
}

TEST_CASE("rank: all cases", "[.rank]") {
  const auto world = make_mpi_communicator({.timeout_s = 60});
  for (const CommunicatorCase& each : communicator_cases()) {
    INFO(each.name);
    try {
      each.run(*world);
    } catch (const Error& error) {
      std::fprintf(stderr, "%s: ", each.name.c_str());
      end_with(error);
    }
  }
  // The same bits as ranks that are threads.
  const std::vector<uint64_t> bits = reduced_bits(*world);
  std::vector<std::vector<uint64_t>> local(size_t(world->size()));
  run_local_ranks(world->size(), {}, [&](Communicator& c) { local[size_t(c.rank())] = reduced_bits(c); });
  REQUIRE(bits.size() > 100'000);
  REQUIRE(local[size_t(world->rank())] == bits);
  if (world->rank() == 0) std::printf("%d ranks agree\n", world->size());
}

TEST_CASE("ranks under mpirun do what every communicator does, with the bits of threads", "[parallel][mpi]") {
  if (is_skipped()) return;
  for (int ranks = 1; ranks <= 4; ++ranks) {
    const Run run = run_mpi(ranks, "rank: all cases");
    INFO(run.text);
    CHECK(run.code == 0);
    CHECK_THAT(run.text, Catch::Contains(std::to_string(ranks) + " ranks agree"));
  }
}

TEST_CASE("rank: 2 is stopped", "[.rank]") {
  const auto world = make_mpi_communicator({.timeout_s = 1});
  try {
    world->set_phase("step 9, dispatch");
    world->barrier();
    if (world->rank() == 2) ::raise(SIGSTOP);
    world->barrier();
  } catch (const Error& error) {
    std::fputs(error.block().c_str(), stderr);
    std::fflush(stderr);
    std::this_thread::sleep_for(std::chrono::seconds(1));  // so that the other rank's text is there too
    mpi_abort(error.code());
  }
}

TEST_CASE("a rank that is stopped is named by all others when the time is up", "[parallel][mpi][faults]") {
  if (is_skipped()) return;
  const Run run = run_mpi(4, "rank: 2 is stopped");
  INFO(run.text);
  CHECK(run.code == 8);
  CHECK(run.seconds < 15);
  for (const int rank : {0, 1, 3}) {
    CHECK_THAT(run.text, Catch::Contains(fmt::format("where: rank {} (host ", rank)));
  }
  CHECK_THAT(run.text, Catch::Contains("for rank 2 in barrier, number 2 of group world"));
  CHECK_THAT(run.text, Catch::Contains(", in step 9, dispatch"));
  CHECK_THAT(run.text, Catch::Contains("has not entered it, is stopped, and was last heard of ") &&
                           Catch::Contains("s ago in barrier, number 1 of group world"));
}

TEST_CASE("rank: 1 is killed", "[.rank]") {
  std::signal(SIGTERM, SIG_IGN);  // mpirun sends it at once, and SIGKILL a second later
  const auto world = make_mpi_communicator({.timeout_s = 30});
  try {
    world->barrier();
    if (world->rank() == 1) ::raise(SIGKILL);
    std::vector<float> x(100'000);
    world->all_reduce(View(x.data(), {100'000}, DType::kFloat32), default_stream());
  } catch (const Error& error) {
    std::fputs(error.block().c_str(), stderr);
    std::fflush(stderr);
    std::this_thread::sleep_for(std::chrono::seconds(2));
    mpi_abort(error.code());
  }
}

TEST_CASE("a rank that is killed is named by all others before mpirun ends them", "[parallel][mpi][faults]") {
  if (is_skipped()) return;
  const Run run = run_mpi(3, "rank: 1 is killed");
  INFO(run.text);
  CHECK(run.code != 0);
  CHECK(run.seconds < 15);
  CHECK_THAT(run.text, Catch::Contains("rank 1 (host "));
  CHECK_THAT(run.text,
             Catch::Contains("is gone, while rank 0 waits for it in all_reduce of 100000 float32, number 2 of "
                             "group world") ||
                 Catch::Contains("is gone, while rank 2 waits for it in all_reduce of 100000 float32, number 2 "
                                 "of group world"));
  CHECK_THAT(run.text, Catch::Contains("where: rank 0 (host ") && Catch::Contains("where: rank 2 (host "));
  CHECK_THAT(run.text, Catch::Contains("7 (peer lost)"));
}

TEST_CASE("rank: 1 is stopped for a while", "[.rank]") {
  const auto world = make_mpi_communicator({.timeout_s = 2});
  for (int i = 0; i < 3; ++i) {
    if (world->rank() == 1) {
      const pid_t me = ::getpid(), waker = ::fork();
      if (waker == 0) {
        ::usleep(700'000);
        ::kill(me, SIGCONT);
        ::_exit(0);
      }
      ::raise(SIGSTOP);
      ::waitpid(waker, nullptr, 0);
    }
    world->barrier();
  }
  if (world->rank() == 0) std::puts("all went on");
}

TEST_CASE("a rank that is stopped for less than the limit holds nobody up", "[parallel][mpi][faults]") {
  if (is_skipped()) return;
  const Run run = run_mpi(3, "rank: 1 is stopped for a while");
  INFO(run.text);
  CHECK(run.code == 0);
  CHECK_THAT(run.text, Catch::Contains("all went on"));
}

TEST_CASE("rank: 1 differs", "[.rank]") {
  const auto world = make_mpi_communicator({.timeout_s = 30});
  try {
    // More than travels without its receiver, so that a wrong match would show.
    std::vector<float> x(200'000);
    const int64_t n = world->rank() == 1 ? 200'000 : 100'000;
    world->all_reduce(View(x.data(), {n}, DType::kFloat32), default_stream());
  } catch (const Error& error) {
    std::fputs(error.block().c_str(), stderr);
    std::this_thread::sleep_for(std::chrono::seconds(1));
    mpi_abort(error.code());
  }
}

TEST_CASE("ranks that reduce different sizes are told apart at once", "[parallel][mpi][faults]") {
  if (is_skipped()) return;
  const Run run = run_mpi(2, "rank: 1 differs");
  INFO(run.text);
  CHECK(run.code == 7);
  CHECK(run.seconds < 15);
  CHECK_THAT(run.text,
             Catch::Contains("rank 1 is in all_reduce of 200000 float32, number 1 of group world; rank 0 is in "
                             "all_reduce of 100000 float32, number 1 of group world") ||
                 Catch::Contains("rank 0 is in all_reduce of 100000 float32, number 1 of group world; rank 1 "
                                 "is in all_reduce of 200000 float32, number 1 of group world"));
}

TEST_CASE("rank: 0 has a bad file", "[.rank]") {
  const auto world = make_mpi_communicator({.timeout_s = 30});
  try {
    if (world->rank() == 0) {
      world->abort(ErrorKind::kData, "shard 3 is damaged");
      std::this_thread::sleep_for(std::chrono::seconds(1));
      mpi_abort(3);
    }
    world->barrier();
  } catch (const Error& error) {
    end_with(error);
  }
}

TEST_CASE("a rank that gives up tells the others why, over MPI", "[parallel][mpi][faults]") {
  if (is_skipped()) return;
  const Run run = run_mpi(2, "rank: 0 has a bad file");
  INFO(run.text);
  CHECK(run.code == 3);
  CHECK_THAT(run.text, Catch::Contains("rank 0 gave up: shard 3 is damaged"));
}

}  // namespace octet::test
