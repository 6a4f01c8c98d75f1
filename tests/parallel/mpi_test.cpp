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
#include "tests/parallel/mpirun.h"

namespace octet::test {
namespace {

// Prints an error as the program would, and ends all ranks with its code.
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
    const MpiRun run = run_mpi(ranks, "rank: all cases");
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
  const MpiRun run = run_mpi(4, "rank: 2 is stopped");
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
  const MpiRun run = run_mpi(3, "rank: 1 is killed");
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
  const MpiRun run = run_mpi(3, "rank: 1 is stopped for a while");
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
  const MpiRun run = run_mpi(2, "rank: 1 differs");
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
  try {
    const auto world = make_mpi_communicator({.timeout_s = 30});  // the other rank may hear of it here already
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
  const MpiRun run = run_mpi(2, "rank: 0 has a bad file");
  INFO(run.text);
  CHECK(run.code == 3);
  CHECK_THAT(run.text, Catch::Contains("rank 0 gave up: shard 3 is damaged"));
}

}  // namespace octet::test
