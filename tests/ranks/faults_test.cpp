// A rank that is killed, stops, loops or blocks in training: every other rank names it, the launch ends with 7 or 8,
// and the same command makes the run that was never broken, bit for bit.
#include "tests/ranks/launched.h"

namespace octet::test {
namespace {

constexpr int64_t kSteps = 6;

struct Fault {
  int rank;
  std::string what, phase, operation;
  int64_t number;
  std::vector<std::string> words() const {
    return {std::to_string(rank), what, phase, operation, std::to_string(number)};
  }
  std::string text() const { return fmt::format("rank {}: {} in {}, {} {}", rank, what, phase, operation, number); }
};

// The unbroken run, made once for a number of ranks.
const std::string& whole(int ranks) {
  static const TemporaryDirectory directory;
  static std::map<int, std::string> runs;
  if (!runs.contains(ranks)) {
    const std::string run = directory / std::to_string(ranks);
    LaunchedTraining launched(ranks, run, kTrainRank, train_rank(run, short_run(ranks, kSteps)));
    const int code = launched.wait();
    INFO(launched.err());
    REQUIRE(code == 0);
    runs[ranks] = run;
  }
  return runs[ranks];
}

// The ranks that live say who was lost: rank, host, step or phase, operation and its number.
void check_named(const std::string& run, int ranks, const Fault& fault) {
  const std::string phase = fault.phase.substr(0, fault.phase.find(','));  // "step 3"; others may be further in it
  for (int rank = 0; rank < ranks; ++rank) {
    if (rank == fault.rank) continue;
    const std::string log = last_log(run, rank);
    CAPTURE(rank, log);
    CHECK_THAT(log, Catch::Contains(fmt::format("rank {} (host ", fault.rank)) && Catch::Contains(", number ") &&
                        Catch::Contains("of group ") && Catch::Contains(phase == "after training" ? "end" : phase));
  }
}

void break_and_check(const std::string& run, int ranks, const Fault& fault) {
  const std::string fault_text = fault.text();
  LaunchedTraining launched(ranks, run, kTrainRank, train_rank(run, short_run(ranks, kSteps), fault.words()));
  const int code = launched.wait();
  const std::string err = launched.err();
  CAPTURE(fault_text, err);
  CHECK(code == (fault.what == "kill" ? 7 : 8));
  CHECK_THAT(err, Catch::Contains(fmt::format("rank {}", fault.rank)) || Catch::Contains("its log is"));
  CHECK_THAT(err, !Catch::Contains("MPI_ABORT") && !Catch::Contains("-----"));
  check_named(run, ranks, fault);
}

void go_on(const std::string& run, int ranks) {
  LaunchedTraining launched(ranks, run, kTrainRank, train_rank(run, short_run(ranks, kSteps)));
  const int code = launched.wait();
  const std::string err = launched.err();
  CAPTURE(err);
  CHECK(code == 0);
  check_same(run, whole(ranks), kSteps);
}

}  // namespace

TEST_CASE("one run broken in phase after phase is the unbroken run in the end", "[ranks][faults]") {
  if (is_skipped()) return;
  const TemporaryDirectory directory;
  const std::string run = directory / "run";
  const Fault faults[] = {{1, "kill", "step 1, gradients", "all_to_all", 3},
                          {0, "stop", "step 2, update", "phase", 1},
                          {0, "kill", "step 2, save", "phase", 1},
                          {1, "loop", "step 3, validation", "phase", 1},
                          {1, "stop", "after training", "phase", 1}};
  for (const Fault& fault : faults) break_and_check(run, 2, fault);
  go_on(run, 2);
}

TEST_CASE("of four ranks three name the one that is lost", "[ranks][faults]") {
  if (is_skipped()) return;
  const TemporaryDirectory directory;
  const std::string run = directory / "run";
  break_and_check(run, 4, {3, "stop", "step 2, gradients", "all_to_all", 2});
  break_and_check(run, 4, {2, "kill", "step 4, save", "all_gather", 1});
  go_on(run, 4);
}

TEST_CASE("each fault in each phase, of each rank", "[.matrix]") {
  if (is_skipped()) return;
  const int ranks = GENERATE(2, 4);
  const std::vector<std::pair<std::string, std::string>> phases = {{"start", "phase"},
                                                                   {"resume", "phase"},
                                                                   {"step 3, gradients", "phase"},
                                                                   {"step 3, gradients", "all_to_all"},
                                                                   {"step 3, update", "phase"},
                                                                   {"step 3, update", "all_reduce"},
                                                                   {"step 3, validation", "phase"},
                                                                   {"step 3, sample", "phase"},
                                                                   {"step 3, sample", "all_to_all"},
                                                                   {"step 4, save", "phase"},
                                                                   {"step 4, save", "all_gather"},
                                                                   {"step 4, save", "broadcast"},
                                                                   {"step 6, save", "all_gather"},
                                                                   {"after training", "phase"}};
  for (const auto& [phase, operation] : phases) {
    const TemporaryDirectory directory;
    const std::string run = directory / "run";
    for (int rank = 0; rank < ranks; ++rank) {
      for (const char* what : {"kill", "stop"}) {
        // Of the last phases the next start has none, where the last checkpoint is there already.
        if (phase.starts_with("step 6") || phase == "after training") real_file_system().remove_tree(run);
        const bool is_often = operation != "phase" && operation != "all_reduce";
        break_and_check(run, ranks, {rank, what, phase, operation, is_often ? 1 + rank % 2 : 1});
        // Or the fault of the next would come too late.
        const std::string newest = join_path(run, "checkpoints/step-00000004");
        if (real_file_system().exists(newest)) real_file_system().remove_tree(run);
      }
    }
    go_on(run, ranks);
  }
}

TEST_CASE("a rank that loops or blocks is named as one that is stopped", "[.matrix]") {
  if (is_skipped()) return;
  const std::string what = GENERATE("loop", "lock", "read");
  const int rank = GENERATE(0, 1);
  const TemporaryDirectory directory;
  const std::string run = directory / "run";
  break_and_check(run, 2, {rank, what, "step 2, gradients", "all_to_all", 2});
  break_and_check(run, 2, {rank, what, "step 3, validation", "phase", 1});
  go_on(run, 2);
}

TEST_CASE("a rank that is stopped and goes on in time is waited for", "[ranks][faults]") {
  if (is_skipped()) return;
  const TemporaryDirectory directory;
  const std::string run = directory / "run";
  const Fault fault{1, "stop", "step 3, gradients", "all_to_all", 1};
  LaunchedTraining launched(2, run, kTrainRank, train_rank(run, short_run(2, kSteps), fault.words()));
  pid_t stopped = 0;
  while (stopped == 0 && !launched.has_ended()) {
    for (const pid_t mpirun : children_of(launched.pid())) {
      for (const pid_t rank : children_of(mpirun)) {
        std::ifstream file(fmt::format("/proc/{}/stat", rank));
        std::string text;
        std::getline(file, text);
        if (text.find(") T ") != std::string::npos) stopped = rank;
      }
    }
    ::usleep(5'000);
  }
  REQUIRE(stopped != 0);
  ::usleep(700'000);  // of the two seconds that ranks are waited for
  ::kill(stopped, SIGCONT);
  CHECK(launched.wait() == 0);
  check_same(run, whole(2), kSteps);
}

TEST_CASE("a rank that stops before all have met holds nobody up for ever", "[ranks][faults]") {
  if (is_skipped()) return;
  const TemporaryDirectory directory;
  const std::string run = directory / "run";
  const int rank = GENERATE(0, 1);
  LaunchedTraining launched(2, run, kTrainRank,
                            train_rank(run, short_run(2, kSteps), Fault{rank, "stop", "launch", "-", 1}.words()));
  CHECK(launched.wait() == 8);
  CHECK_THAT(launched.err(), Catch::Contains("the ranks have not all met within 5 s") &&
                                 Catch::Contains(fmt::format("rank {} on host ", 1 - rank)));
}

TEST_CASE("a rank without memory ends all with code 9, and is named", "[ranks][faults]") {
  if (is_skipped()) return;
  const TemporaryDirectory directory;
  const std::string run = directory / "run";
  LaunchedTraining launched(
      2, run, kTrainRank,
      train_rank(run, short_run(2, kSteps), Fault{1, "memory", "step 2, update", "phase", 1}.words()));
  CHECK(launched.wait() == 9);
  CHECK_THAT(launched.err(), Catch::Contains("rank 1 gave up: out of memory"));
  go_on(run, 2);
}

TEST_CASE("a rank that is always slower than the others is named in the log and the report", "[ranks][slow]") {
  if (is_skipped()) return;
  const TemporaryDirectory directory;
  const std::string run = directory / "run";
  Sets sets = short_run(2, 60);
  sets.push_back("train.log_every_steps=1");
  const Fault fault{1, "slow", "step", "all_to_all", 1};
  LaunchedTraining launched(2, run, kTrainRank, train_rank(run, sets, fault.words()));
  const int code = launched.wait();
  const std::string err = launched.err(), html = real_file_system().read_text(join_path(run, "report.html"));
  CAPTURE(err);
  CHECK(code == 0);
  CHECK_THAT(err, Catch::Contains("rank 1 (host ") && Catch::Contains("is slower than the others"));
  CHECK_THAT(html, Catch::Contains("Rank 1 (host ") && !Catch::Contains("Rank 0 (host "));
}

}  // namespace octet::test
