// Ranks that die, stop, loop or block, in each phase of a step, under the real mpirun; and ranks that only take long.
// The cases with "[.rank]" are what the ranks run. What they are to do is in OCTET_TEST_FAULT.
#include <fmt/core.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <csignal>
#include <functional>
#include <semaphore>
#include <sstream>
#include <thread>

#include "core/base/clock.h"
#include "parallel/local_communicator.h"
#include "parallel/mpi_communicator.h"
#include "tests/parallel/mpirun.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

Stream& stream() { return default_stream(); }

void sleep_s(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

void compute_for(double seconds) {
  for (const double until = real_clock().seconds() + seconds; real_clock().seconds() < until;) continue;
}

// ---- Faults in a step

const std::vector<std::string> kPhases = {"data",   "forward",   "dispatch", "combine", "backward",
                                          "reduce", "optimizer", "save",     "eval"};

struct Fault {
  std::string kind;  // kill, stop, pause, loop, block or lock
  std::string phase;
  int rank = 0;
  double timeout_s = 0;

  std::string text() const { return fmt::format("{} {} {} {}", kind, phase, rank, timeout_s); }
  static Fault from_environment() {
    Fault fault;
    std::istringstream(std::getenv("OCTET_TEST_FAULT")) >> fault.kind >> fault.phase >> fault.rank >> fault.timeout_s;
    return fault;
  }
};

void commit(const Fault& fault) {
  if (fault.kind == "kill") ::raise(SIGKILL);
  if (fault.kind == "stop") ::raise(SIGSTOP);
  if (fault.kind == "pause") {
    const pid_t me = ::getpid(), waker = ::fork();
    if (waker == 0) {
      ::usleep(useconds_t(fault.timeout_s / 8 * 1e6));
      ::kill(me, SIGCONT);
      ::_exit(0);
    }
    ::raise(SIGSTOP);
    ::waitpid(waker, nullptr, 0);
  }
  if (fault.kind == "loop") {
    volatile bool is_endless = true;
    while (is_endless) continue;
  }
  if (fault.kind == "block") {
    int ends[2];
    char byte = 0;
    require(::pipe(ends) == 0 && ::read(ends[0], &byte, 1) == 1, "a pipe with nothing in it gave something");
  }
  if (fault.kind == "lock") std::binary_semaphore(0).acquire();
}

// A step with the operations of training, those of dispatch and of reduction under way while it goes on.
class Step {
 public:
  Step(Communicator& world, Communicator& pair)
      : world_(world), pair_(pair), gradient_(size_t(world.size()) * 30'000, 1.0f), shard_(30'000) {}

  void run(int step, const Fault& fault) {
    for (const std::string& phase : kPhases) {
      world_.set_phase(fmt::format("step {}, {}", step, phase));
      Pending under_way;
      const bool is_faulty = step == 2 && phase == fault.phase && world_.rank() == fault.rank;
      if (phase == "dispatch" || phase == "combine") under_way = exchange();
      if (phase == "reduce") under_way = world_.start_reduce_scatter(view(gradient_), view(shard_), stream());
      if (is_faulty) commit(fault);
      under_way.wait();
      if (phase == "optimizer") world_.all_gather(view(shard_), view(gradient_), stream());
      if (phase == "eval" || phase == "data") {
        double loss[] = {1.0};
        world_.all_reduce(std::span<double>(loss));
      }
      if (phase == "save") world_.barrier();
      if (phase == "forward" || phase == "backward") compute_for(1e-3);
    }
  }

 private:
  static View view(std::vector<float>& x) { return View(x.data(), {int64_t(x.size())}, DType::kFloat32); }
  Pending exchange() {
    counts_.assign(size_t(pair_.size()), 20'000 / pair_.size());
    sent_.assign(20'000, 1.0f), received_ = sent_;
    return pair_.start_all_to_all_v(
        {.send = view(sent_), .send_pieces = {counts_}, .receive = view(received_), .receive_pieces = {counts_}},
        stream());
  }

  Communicator& world_;
  Communicator& pair_;
  std::vector<float> gradient_, shard_, sent_, received_;
  std::vector<int64_t> counts_;
};

std::vector<int> pair_of(const Communicator& world) {
  std::vector<int> ranks;
  for (int r = world.rank() / 2 * 2; r < std::min(world.rank() / 2 * 2 + 2, world.size()); ++r) ranks.push_back(r);
  return ranks;
}

// Long where it is not to pass.
double timeout_for(const std::string& kind) { return kind == "kill" ? 20 : kind == "pause" ? 8 : 1.5; }

MpiRun run_with(int ranks, const std::string& name, const Fault& fault) {
  ::setenv("OCTET_TEST_FAULT", fault.text().c_str(), 1);
  return run_mpi(ranks, name);
}

// Seconds after which the last live rank named the other; 0 where the run went on.
double check_fault(int ranks, const Fault& fault) {
  const MpiRun run = run_with(ranks, "rank: a fault in a step", fault);
  INFO(ranks << " ranks, " << fault.text() << "\n" << run.text);
  if (fault.kind == "pause") {
    CHECK(run.code == 0);
    CHECK_THAT(run.text, Catch::Contains("all went on"));
    return 0;
  }
  const bool is_killed = fault.kind == "kill";
  CHECK(run.code == (is_killed ? 137 : 8));  // of mpirun
  CHECK(run.seconds < 10 * fault.timeout_s + 30);
  // Who, where, doing what, and what it did last: in the text of every other rank.
  int named = 0;
  double slowest = 0;
  constexpr std::string_view kBegin = "octet: error: ", kEnd = "\nnamed after ";
  for (size_t at = 0; (at = run.text.find(kBegin, at)) != std::string::npos; ++at) {
    const size_t end = run.text.find(kEnd, at);
    const std::string block = run.text.substr(at, end - at);
    // mpirun wakes a rank that was stopped, and it may find what the others said.
    if (block.find(fmt::format("where: rank {} ", fault.rank)) != std::string::npos) continue;
    INFO(block);
    CHECK_THAT(block, Catch::Contains(fmt::format("rank {} (host ", fault.rank)) && Catch::Contains(", process "));
    CHECK_THAT(block, Catch::Contains(", number ") && Catch::Contains(" of group ") && Catch::Contains("step 2, "));
    CHECK_THAT(block, Catch::Contains(is_killed ? " is gone, while " : " has waited "));
    CHECK_THAT(block, Catch::Contains(is_killed ? "7 (peer lost)" : "8 (hang)"));
    if (fault.kind == "stop") CHECK_THAT(block, Catch::Contains("is stopped") && Catch::Contains("it did not answer"));
    if (fault.kind == "loop" || fault.kind == "block" || fault.kind == "lock") {
      CHECK_THAT(block, Catch::Contains("is running") && Catch::Contains(" s ago it had made no call for ") &&
                            Catch::Contains(fmt::format("in step 2, {}", fault.phase)));
    }
    ++named;
    if (end != std::string::npos) slowest = std::max(slowest, std::stod(run.text.substr(end + kEnd.size(), 10)));
  }
  CHECK(named == ranks - 1);
  return slowest;
}

}  // namespace

TEST_CASE("rank: a fault in a step", "[.rank]") {
  const Fault fault = Fault::from_environment();
  if (fault.kind == "kill") std::signal(SIGTERM, SIG_IGN);  // mpirun sends it at once, and SIGKILL a second later
  const auto world = make_mpi_communicator({.timeout_s = fault.timeout_s});
  const auto pair = world->group(pair_of(*world), "pair");
  double began = 0;
  try {
    Step step(*world, *pair);
    step.run(1, fault);
    began = real_clock().seconds();
    step.run(2, fault);
    step.run(3, fault);
  } catch (const Error& error) {
    const double seconds = real_clock().seconds() - began;
    std::fputs((error.block() + fmt::format("\nnamed after {:.2f} s\n", seconds)).c_str(), stderr);
    std::fflush(stderr);
    sleep_s(fault.kind == "kill" ? 2 : 1);  // so that the text of the others is there too
    mpi_abort(error.code());
  }
  if (world->rank() == 0) std::puts("all went on");
}

TEST_CASE("every live rank names one that is killed, stopped, loops or blocks", "[parallel][mpi][faults]") {
  if (is_skipped()) return;
  // Each kind in some phases, each phase with some kind, each rank, 2 to 4 of them.
  const auto [ranks, kind, phase, rank] = GENERATE(table<int, std::string, std::string, int>({
      {2, "kill", "dispatch", 1},
      {4, "kill", "reduce", 2},
      {3, "kill", "save", 0},
      {2, "stop", "combine", 0},
      {4, "stop", "optimizer", 3},
      {3, "pause", "reduce", 1},
      {2, "loop", "forward", 1},
      {4, "loop", "dispatch", 0},
      {3, "block", "data", 2},
      {4, "block", "backward", 1},
      {3, "lock", "eval", 1},
  }));
  check_fault(ranks, {.kind = kind, .phase = phase, .rank = rank, .timeout_s = timeout_for(kind)});
}

// Some ten minutes.
TEST_CASE("every live rank names any other, in every phase", "[.matrix]") {
  if (is_skipped()) return;
  const std::string kind = GENERATE("kill", "stop", "pause", "loop", "block", "lock");
  const std::string phase = GENERATE(from_range(kPhases));
  const int rank = GENERATE(0, 1, 2, 3);
  const double slowest = check_fault(4, {.kind = kind, .phase = phase, .rank = rank, .timeout_s = timeout_for(kind)});
  std::printf("%s %s %d: named after %.2f s\n", kind.c_str(), phase.c_str(), rank, slowest);
}

// ---- Ranks that take long

namespace {

// Rank 2 waits for 1, which waits for 0, which is in `work`.
void wait_in_a_row(Communicator& world, const std::function<void()>& work) {
  std::unique_ptr<Communicator> first, second;
  const std::vector<int> low = {0, 1}, high = {1, 2}, alone = {world.rank()};
  first = world.group(world.rank() < 2 ? low : alone, "low");
  second = world.group(world.rank() > 0 ? high : alone, "high");
  world.set_phase("step 3, save");
  world.barrier();
  if (world.rank() == 0) work();
  if (world.rank() < 2) first->barrier();
  if (world.rank() > 0) second->barrier();
  world.barrier();
}

void work_for(Communicator& world, double seconds) {
  for (const double until = real_clock().seconds() + seconds; real_clock().seconds() < until;) {
    sleep_s(0.05);
    world.progress();
  }
}

}  // namespace

TEST_CASE("a rank that says it gets on is waited for, also through others", "[parallel][faults]") {
  constexpr double kTimeout = 0.8;
  LocalOptions options;
  options.communicator.timeout_s = kTimeout;
  rethrow_first(run_local_ranks(
      3, options, [&](Communicator& world) { wait_in_a_row(world, [&] { work_for(world, 3 * kTimeout); }); }));
}

TEST_CASE("rank: 0 works for long", "[.rank]") {
  const auto world = make_mpi_communicator({.timeout_s = 1.5});
  try {
    wait_in_a_row(*world, [&] { work_for(*world, 5); });
    if (world->rank() == 0) {
      std::puts("all went on");
      work_for(*world, 4);  // and the others wait for the end
    }
  } catch (const Error& error) {
    end_with(error);
  }
}

TEST_CASE("a rank that works for long and says so is waited for, over MPI, and at the end", "[parallel][mpi][faults]") {
  if (is_skipped()) return;
  const MpiRun run = run_mpi(3, "rank: 0 works for long");
  INFO(run.text);
  CHECK(run.code == 0);
  CHECK(run.seconds > 9);
  CHECK_THAT(run.text, Catch::Contains("all went on") && !Catch::Contains("could not end"));
}

TEST_CASE("the rank that holds up others that wait for each other is the one named", "[parallel][faults]") {
  LocalOptions options;
  options.communicator.timeout_s = 0.5;
  // Its collectives: the barrier of the world, and then that of the pair.
  options.faults = {{.rank = 0, .at_collective = 2, .kind = LocalFault::Kind::kStall}};
  const auto errors = run_local_ranks(3, options, [&](Communicator& world) { wait_in_a_row(world, [] {}); });
  for (const size_t rank : {1, 2}) {
    REQUIRE(errors[rank]);
    try {
      std::rethrow_exception(errors[rank]);
    } catch (const Error& error) {
      INFO(error.block());
      CHECK(error.code() == 8);
      CHECK_THAT(error.report().what, Catch::Contains("rank 1 has waited ") &&
                                          Catch::Contains("s for rank 0 in barrier, number 1 of group low"));
      CHECK_THAT(error.report().why, Catch::Contains("rank 0 (host ") && Catch::Contains("it had made no call for ") &&
                                         Catch::Contains("in step 3, save"));
    }
  }
}

TEST_CASE("ranks that wait for each other in a circle are named", "[parallel][faults]") {
  LocalOptions options;
  options.communicator.timeout_s = 0.5;
  const auto errors = run_local_ranks(2, options, [&](Communicator& world) {
    const std::vector<int> both = {0, 1};
    const auto a = world.group(both, "a"), b = world.group(both, "b");
    (world.rank() == 0 ? *a : *b).barrier();
  });
  for (const auto& each : errors) {
    REQUIRE(each);
    try {
      std::rethrow_exception(each);
    } catch (const Error& error) {
      INFO(error.block());
      CHECK(error.code() == 8);
      // What one of them waits for, and what the other said.
      CHECK_THAT(error.block(), (Catch::Contains("rank 0 has waited ") && Catch::Contains("of group a") &&
                                 Catch::Contains("it waited for rank 0 in barrier, number 1 of group b")) ||
                                    (Catch::Contains("rank 1 has waited ") && Catch::Contains("of group b") &&
                                     Catch::Contains("it waited for rank 1 in barrier, number 1 of group a")));
    }
  }
}

// ---- Messages that travel while ranks compute

namespace {

// Exchanges, and computes for ten times the delay meanwhile.
void overlap(Communicator& world, double delay_s) {
  const int n = world.size();
  std::vector<float> sent(size_t(n) * 50'000, float(world.rank())), received(sent.size(), -1.0f), sum(100'000, 1.0f);
  const std::vector<int64_t> counts(size_t(n), 50'000);
  const auto view = [](std::vector<float>& x) { return View(x.data(), {int64_t(x.size())}, DType::kFloat32); };
  world.barrier();
  Pending exchange = world.start_all_to_all_v(
      {.send = view(sent), .send_pieces = {counts}, .receive = view(received), .receive_pieces = {counts}}, stream());
  Pending reduction = world.start_all_reduce(view(sum), stream());
  require(!exchange.is_done() && !reduction.is_done(), "a message came before its delay");
  compute_for(10 * delay_s);
  const double began = real_clock().seconds();
  // The first look finds them done, so that nothing was left to wait for: neither the pieces that follow the headers,
  // nor the second exchange of the sum.
  const bool are_done = exchange.is_done() && reduction.is_done();
  exchange.wait(), reduction.wait();
  const double waited = real_clock().seconds() - began;
  require(are_done && waited < 0.3 * delay_s, "waited {} s after the computation", waited);
  for (int r = 0; r < n; ++r) {
    require(received[size_t(r) * 50'000 + 49'999] == float(r), "the piece of rank {}: {}", r, received.back());
  }
  require(sum.back() == float(n), "a sum of {}; wanted {}", sum.back(), n);
}

}  // namespace

TEST_CASE("messages travel while a rank computes", "[parallel]") {
  LocalOptions options;
  options.communicator.link_delay_us = 30'000;
  rethrow_first(run_local_ranks(2, options, [](Communicator& world) { overlap(world, 0.03); }));
}

TEST_CASE("rank: computes while messages travel", "[.rank]") {
  const auto world = make_mpi_communicator({.timeout_s = 30, .link_delay_us = 50'000});
  try {
    overlap(*world, 0.05);
    if (world->rank() == 0) std::puts("nothing was left to wait for");
  } catch (const Error& error) {
    end_with(error);
  }
}

TEST_CASE("messages travel while a rank computes, over MPI", "[parallel][mpi]") {
  if (is_skipped()) return;
  const MpiRun run = run_mpi(2, "rank: computes while messages travel");
  INFO(run.text);
  CHECK(run.code == 0);
  CHECK_THAT(run.text, Catch::Contains("nothing was left to wait for"));
}

TEST_CASE("a link with a delay gives the same results, later", "[parallel]") {
  LocalOptions options;
  options.communicator.link_delay_us = 20'000;
  std::vector<double> seconds(3);
  rethrow_first(run_local_ranks(3, options, [&](Communicator& world) {
    world.barrier();
    const double began = real_clock().seconds();
    for (int i = 0; i < 3; ++i) world.barrier();
    seconds[size_t(world.rank())] = real_clock().seconds() - began;
  }));
  for (const double each : seconds) CHECK(each >= 0.059);
  options.communicator.link_delay_us = -1;
  const auto errors = run_local_ranks(1, options, [](Communicator&) {});
  REQUIRE(errors[0]);
  CHECK_THROWS_WITH(std::rethrow_exception(errors[0]), Catch::Contains("a link delay of -1 us; wanted 0 or more"));
}

// ---- No false alarm

TEST_CASE("rank: many steps", "[.rank]") {
  const Fault wish = Fault::from_environment();
  const auto world = make_mpi_communicator({.timeout_s = wish.timeout_s});
  const auto pair = world->group(pair_of(*world), "pair");
  const double began = real_clock().seconds();
  try {
    std::vector<float> gradient(size_t(world->size()) * 500, 1.0f), shard(500), sent(400, 1.0f), received(400);
    const auto view = [](std::vector<float>& x) { return View(x.data(), {int64_t(x.size())}, DType::kFloat32); };
    const std::vector<int64_t> counts(size_t(pair->size()), 400 / pair->size());
    for (int step = 1; step <= wish.rank; ++step) {
      world->set_phase(fmt::format("step {}", step));
      Pending exchange = pair->start_all_to_all_v(
          {.send = view(sent), .send_pieces = {counts}, .receive = view(received), .receive_pieces = {counts}},
          stream());
      if (step % 16 == world->rank()) sleep_s(1e-3);
      exchange.wait();
      world->reduce_scatter(view(gradient), view(shard), stream());
      double norm[] = {1.0};
      world->all_reduce(std::span<double>(norm));
      require(norm[0] == world->size(), "a norm of {}", norm[0]);
      world->all_gather(view(shard), view(gradient), stream());
      std::fill(gradient.begin(), gradient.end(), 1.0f);
    }
  } catch (const Error& error) {
    end_with(error);
  }
  if (world->rank() == 0) std::printf("%d steps in %.1f s\n", wish.rank, real_clock().seconds() - began);
}

TEST_CASE("many steps of many ranks on few cores raise no alarm", "[parallel][mpi][faults]") {
  if (is_skipped()) return;
  const MpiRun run = run_with(8, "rank: many steps", {.kind = "none", .phase = "none", .rank = 300, .timeout_s = 30});
  INFO(run.text);
  CHECK(run.code == 0);
  CHECK_THAT(run.text, Catch::Contains("300 steps"));
}

TEST_CASE("ten thousand steps of eight ranks raise no alarm", "[.soak]") {
  if (is_skipped()) return;
  const MpiRun run = run_with(8, "rank: many steps", {.kind = "none", .phase = "none", .rank = 10'000, .timeout_s = 5});
  std::fputs(run.text.c_str(), stdout);
  CHECK(run.code == 0);
  CHECK_THAT(run.text, Catch::Contains("10000 steps"));
}

}  // namespace octet::test
