// Signals at moments drawn from a seed: every one ends in a save and code 75, and the run in the unbroken one.
#include <random>

#include "tests/ranks/launched.h"

namespace octet::test {
namespace {

constexpr int64_t kSteps = 4000;

// Long enough that no stop comes after its end.
Sets long_run() {
  Sets sets = short_run(2, kSteps);
  for (const char* set : {"train.eval_every_steps=20", "train.sample_every_steps=20", "checkpoint.every_steps=15"}) {
    sets.emplace_back(set);
  }
  return sets;
}

int64_t last_step(const std::string& run) {
  const auto entries = losses(run).size();
  return int64_t(entries);
}

// Stops one run `times`, and lets an unbroken one go as far as it came.
void stop_often(int times, const std::function<void(Launched&, std::mt19937&)>& stop) {
  const TemporaryDirectory directory;
  const std::string run = directory / "run", whole = directory / "whole";
  std::mt19937 random(1);
  for (int i = 0; i < times; ++i) {
    LaunchedTraining launched(2, run, kOctet, octet_train(run, long_run()));
    ::usleep(10'000);  // the first moments are those of a process before launch()
    ::usleep(useconds_t(random() % 1'500'000));
    stop(launched, random);
    const int code = launched.wait();
    const std::string err = launched.err();
    CAPTURE(i, launched.seconds(), err);
    CHECK(code == 75);
    CHECK_THAT(err, !Catch::Contains("octet: error"));
    const std::string checkpoints = join_path(run, "checkpoints");
    if (!real_file_system().exists(checkpoints)) continue;
    // What was recorded is saved, or the stop came before there was anything to save.
    CHECK(last_step(run) < kSteps);
    if (last_step(run) > 0) {
      CHECK(real_file_system().exists(join_path(checkpoints, fmt::format("step-{:08}", last_step(run)))));
    }
  }
  const int64_t steps = last_step(run);
  REQUIRE(steps > 0);
  CHECK(run_all({{.argv = {kOctet, "ckpt", "verify", join_path(run, "checkpoints")}}}, 60).front().code == 0);
  const auto finish = [&](const std::string& out) {
    Sets sets = long_run();
    sets.push_back(fmt::format("train.steps={}", steps + 2));
    LaunchedTraining launched(2, out, kOctet, octet_train(out, sets));
    CHECK(launched.wait(600) == 0);
  };
  finish(run);
  finish(whole);
  check_same(run, whole, steps + 2);
}

void stop_launcher(Launched& launched, std::mt19937&) { launched.signal(SIGTERM); }

// Any signal, to the launcher or to a rank, once or twice.
void stop_any(Launched& launched, std::mt19937& random) {
  constexpr int kSignals[] = {SIGTERM, SIGINT, SIGUSR1};
  const auto target = random() % 3;  // 2: the launcher
  const int signal = kSignals[random() % 3];
  pid_t pid = launched.pid();
  if (target < 2) {
    std::vector<pid_t> ranks;
    while (ranks.size() < 2 && !launched.has_ended()) {
      for (const pid_t mpirun : children_of(launched.pid())) ranks = children_of(mpirun);
      ::usleep(1'000);
    }
    if (ranks.size() < 2) return;
    pid = ranks[target];
  }
  ::kill(pid, signal);
  if (signal == SIGINT || random() % 2 == 0) return;  // a second SIGINT would not wait for the save
  ::usleep(useconds_t(random() % 200'000));
  ::kill(pid, signal);
}

}  // namespace

TEST_CASE("SIGTERM at any moment saves and gives 75, and the run ends as the unbroken one", "[ranks][stop]") {
  if (is_skipped()) return;
  stop_often(8, stop_launcher);
}

TEST_CASE("a hundred times SIGTERM", "[.matrix]") {
  if (is_skipped()) return;
  stop_often(100, stop_launcher);
}

TEST_CASE("any signal, to the launcher or to a rank, once or twice, a hundred times", "[.matrix]") {
  if (is_skipped()) return;
  stop_often(100, stop_any);
}

}  // namespace octet::test
