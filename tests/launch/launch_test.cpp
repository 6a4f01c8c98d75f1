// octet launch over the real mpirun, with launch_rank as the program of the ranks. Each launch is a process of its own.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <random>
#include <utility>

#include "tests/launch/launched.h"
#include "tools/launch/process.h"

namespace octet::test {
namespace {

bool is_skipped() {
#if defined(OCTET_TEST_MPI)
  if (!find_program("mpirun").empty()) return false;
#endif
  WARN("skipped: this build has no MPI, or there is no mpirun");
  return true;
}

// launch_rank on some ranks.
class LaunchedRanks : public Launched {
 public:
  LaunchedRanks(int ranks, std::vector<std::string> words, const std::function<void(LaunchPlan&)>& change = {},
                int stdout_fd = -1)
      : Launched(plan_of(ranks, std::move(words), change), stdout_fd) {}

 private:
  static LaunchPlan plan_of(int ranks, std::vector<std::string> words, const std::function<void(LaunchPlan&)>& change) {
    LaunchPlan plan{.program = OCTET_BINARY_DIR "/launch_rank",
                    .args = std::move(words),
                    .ranks = ranks,
                    .run_dir = "runs/x",
                    .version = "launch_rank 1"};
    if (change) change(plan);
    return plan;
  }
};

// The process numbers of ranks that wait, when all of them do.
std::vector<pid_t> pids_in(const TemporaryDirectory& directory, int ranks) {
  std::vector<pid_t> pids;
  for (int rank = 0; rank < ranks; ++rank) {
    const std::string file = directory / std::to_string(rank);
    for (int i = 0; !real_file_system().exists(file); ++i) {
      REQUIRE(i < 3000);
      ::usleep(10'000);
    }
    pids.push_back(std::stoi(real_file_system().read_text(file)));
  }
  return pids;
}

bool has_saved(const TemporaryDirectory& directory, int rank) {
  return real_file_system().exists(directory / (std::to_string(rank) + ".saved"));
}

// proc(5), /proc/pid/stat from its third field on; the second may hold anything, in parentheses. "" of no process.
std::string state_and_parent(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text;
  std::getline(file, text);
  const size_t name_end = text.rfind(") ");
  return name_end == std::string::npos ? std::string() : text.substr(name_end + 2);
}

bool are_gone_within(const std::vector<pid_t>& pids, double seconds) {
  for (double waited = 0;; waited += 0.05) {
    bool is_any = false;
    for (const pid_t pid : pids) {
      const std::string state = state_and_parent(pid);
      is_any = is_any || !(state.empty() || state[0] == 'Z');  // ended, and not yet waited for
    }
    if (!is_any) return true;
    if (waited > seconds) return false;
    ::usleep(50'000);
  }
}

void make_script(const std::string& path, const std::string& text) {
  real_file_system().write_atomically(path, "#!/bin/sh\n" + text + "\n");
  REQUIRE(::chmod(path.c_str(), 0700) == 0);
}

}  // namespace

TEST_CASE("all ranks run, and nothing of mpirun's is seen", "[launch]") {
  if (is_skipped()) return;
  LaunchedRanks launched(3, {"report"});
  CHECK(launched.wait() == 0);
  const std::string out = launched.out(), err = launched.err();
  CAPTURE(out, err);
  for (int rank = 0; rank < 3; ++rank) {
    CHECK_THAT(out, Catch::Contains(fmt::format("rank {} of 3 on ", rank)));
    CHECK_THAT(err, Catch::Contains(fmt::format("stderr of rank {}\n", rank)));
  }
  CHECK(out.size() + err.size() < 300);
}

TEST_CASE("arguments reach the ranks as they were given", "[launch]") {
  if (is_skipped()) return;
  LaunchedRanks launched(1, {"arguments", "a b", "--set", "x=it's $HOME", "", "*"});
  CHECK(launched.wait() == 0);
  CHECK(launched.out() == "[arguments]\n[a b]\n[--set]\n[x=it's $HOME]\n[]\n[*]\n");
}

TEST_CASE("the code of the ranks is the code of the launch", "[launch]") {
  if (is_skipped()) return;
  const auto [how, rank, code] = GENERATE(table<std::string, int, int>({{"exit", 0, 75},
                                                                        {"exit", 1, 75},
                                                                        {"exit", 1, 6},
                                                                        {"fail", 2, 3},
                                                                        {"fail", 0, 2},
                                                                        {"abort", 1, 8},
                                                                        {"abort", 0, 7}}));
  CAPTURE(how, rank, code);
  LaunchedRanks launched(3, {how, std::to_string(rank), std::to_string(code)});
  CHECK(launched.wait() == code);
  const std::string err = launched.err();
  CAPTURE(err);
  CHECK_THAT(err, !Catch::Contains("mpirun") && !Catch::Contains("MPI_ABORT") && !Catch::Contains("-----"));
  CHECK(err.empty() == (code == 75));
  if (code != 75) {
    CHECK_THAT(err, Catch::Contains(fmt::format("the ranks ended with code {} (", code)) &&
                        Catch::Contains(fmt::format(": rank {}; its log is ", rank)) &&
                        Catch::Contains(fmt::format("runs/x/logs/rank-{:03}.log", rank)));
  }
}

TEST_CASE("a rank that a signal ended is named, with code 7", "[launch][faults]") {
  if (is_skipped()) return;
  const int signal = GENERATE(SIGKILL, SIGSEGV);
  LaunchedRanks launched(3, {"kill", "1", std::to_string(signal)});
  CHECK(launched.wait() == 7);
  const std::string err = launched.err();
  CAPTURE(err);
  CHECK_THAT(err, Catch::Contains(fmt::format("rank 1 was ended by signal {}, ", signal)) &&
                      Catch::Contains("rank 1 (host ") && Catch::Contains("logs/rank-001.log") &&
                      Catch::Contains("7 (peer lost)") && !Catch::Contains("mpirun"));
}

TEST_CASE("a rank that was asked to stop before it could save gives 75", "[launch][faults]") {
  if (is_skipped()) return;
  // By a signal; or with its number alone, where mpirun says no more of a rank that was only starting.
  const auto [how, number] =
      GENERATE(table<std::string, int>({{"kill", SIGTERM}, {"fail", 128 + SIGTERM}, {"fail", 128 + SIGINT}}));
  CAPTURE(how, number);
  LaunchedRanks launched(3, {how, "1", std::to_string(number)});
  CHECK(launched.wait() == 75);
  CHECK_THAT(launched.err(), !Catch::Contains("octet: error"));
}

TEST_CASE("each way to ask for a stop lets all ranks save, and gives 75", "[launch][faults]") {
  if (is_skipped()) return;
  const int signal = GENERATE(SIGTERM, SIGINT, SIGHUP, SIGUSR1);
  CAPTURE(signal);
  const TemporaryDirectory directory;
  LaunchedRanks launched(3, {"wait", directory.path(), "3"});  // longer than mpirun by itself leaves them
  const auto pids = pids_in(directory, 3);
  launched.signal(signal);
  if (signal == SIGTERM) ::usleep(300'000), launched.signal(SIGTERM);  // the second changes nothing
  CHECK(launched.wait() == 75);
  for (int rank = 0; rank < 3; ++rank) CHECK(has_saved(directory, rank));
  CHECK(launched.out() == "all are there\n");
  CHECK(launched.err().empty());
  CHECK(are_gone_within(pids, 0));
}

TEST_CASE("a stop at any moment of the start gives 75 and leaves nothing running", "[launch][faults]") {
  if (is_skipped()) return;
  std::mt19937 random(1);
  for (int i = 0; i < 12; ++i) {
    const int delay_ms = int(random() % 900), signal = i % 2 == 0 ? SIGTERM : SIGINT;
    CAPTURE(delay_ms, signal);
    const TemporaryDirectory directory;
    LaunchedRanks launched(2, {"wait", directory.path()});
    ::usleep(20'000 + useconds_t(delay_ms) * 1000);  // the first moments are those of a process before launch()
    launched.signal(signal);
    CHECK(launched.wait() == 75);
    const std::string err = launched.err();
    CAPTURE(err);
    CHECK(err.empty());
    for (int rank = 0; rank < 2; ++rank) {
      const std::string file = directory / std::to_string(rank);
      if (!real_file_system().exists(file)) continue;
      CHECK(are_gone_within({std::stoi(real_file_system().read_text(file))}, 0));
    }
  }
}

TEST_CASE("a second SIGINT does not wait for the save", "[launch][faults]") {
  if (is_skipped()) return;
  const TemporaryDirectory directory;
  LaunchedRanks launched(2, {"wait", directory.path(), "60"});
  const auto pids = pids_in(directory, 2);
  launched.signal(SIGINT);
  ::usleep(300'000);
  launched.signal(SIGINT);
  CHECK(launched.wait() == 130);
  CHECK(are_gone_within(pids, 1));
  CHECK(launched.seconds() < 30);
  CHECK_FALSE(has_saved(directory, 0));
}

TEST_CASE("a launcher that is killed leaves no rank, not even a stopped one", "[launch][faults]") {
  if (is_skipped()) return;
  const TemporaryDirectory directory;
  LaunchedRanks launched(3, {"wait", directory.path()});
  const auto pids = pids_in(directory, 3);
  ::kill(pids[1], SIGSTOP);
  launched.signal(SIGKILL);
  CHECK(launched.wait() == 128 + SIGKILL);
  CHECK(are_gone_within(pids, 10));
}

TEST_CASE("an mpirun that is killed leaves no rank", "[launch][faults]") {
  if (is_skipped()) return;
  const TemporaryDirectory directory;
  LaunchedRanks launched(3, {"wait", directory.path()});
  const auto pids = pids_in(directory, 3);
  ::kill(pids[2], SIGSTOP);
  const pid_t mpirun = std::stoi(state_and_parent(pids[0]).substr(2));
  ::kill(mpirun, SIGKILL);
  CHECK(launched.wait() == 7);
  CHECK(are_gone_within(pids, 5));
  CHECK_THAT(launched.err(), Catch::Contains("mpirun ended with code 137"));
}

TEST_CASE("what is not there is said before anything starts", "[launch]") {
  if (is_skipped()) return;
  const TemporaryDirectory directory;
  {
    LaunchedRanks launched(2, {"report"}, [](LaunchPlan& plan) { plan.mpirun = "no-such-mpirun"; });
    CHECK(launched.wait() == 2);
    CHECK_THAT(launched.err(), Catch::Contains("no-such-mpirun was not found") && Catch::Contains("openmpi-bin"));
  }
  {
    make_script(directory / "mpirun", "echo HYDRA build details:");
    LaunchedRanks launched(2, {"report"}, [&](LaunchPlan& plan) { plan.mpirun = directory / "mpirun"; });
    CHECK(launched.wait() == 2);
    CHECK_THAT(launched.err(), Catch::Contains("is not Open MPI 4") && Catch::Contains("HYDRA"));
  }
  {
    LaunchedRanks launched(2, {"report"}, [](LaunchPlan& plan) { plan.program = "/nowhere/octet"; });
    CHECK(launched.wait() == 7);
    CHECK_THAT(launched.err(), Catch::Contains("the ranks could not be started") && Catch::Contains("/nowhere/octet"));
  }
}

TEST_CASE("the code that rank 0 says counts, where mpirun knows none", "[launch]") {
  const TemporaryDirectory directory;
  const auto [said, code] = GENERATE(table<std::string, int>({{"75", 75}, {"0", 0}, {"6", 6}, {"", 7}}));
  CAPTURE(said);
  make_script(directory / "mpirun", fmt::format("[ \"$1\" = --version ] && exec echo 'mpirun (Open MPI) 4.1.4'\n"
                                                "echo 'octet: the ranks ended with code {}' >&2\n"
                                                "exit 1",
                                                said));
  LaunchedRanks launched(2, {"report"}, [&](LaunchPlan& plan) { plan.mpirun = directory / "mpirun"; });
  CHECK(launched.wait() == code);
  CHECK(launched.err().empty() == (code != 7));
}

TEST_CASE("a host that cannot take part is named within a minute, with what the agent said", "[launch][faults]") {
  if (is_skipped()) return;
  const TemporaryDirectory directory;
  const auto try_agent = [&](const std::string& text, const std::string& what) {
    make_script(directory / "agent", text);
    LaunchedRanks launched(3, {"report"}, [&](LaunchPlan& plan) {
      plan.hosts = {{"localhost", 1}, {"far-1.invalid", 1}, {"far-2.invalid", 1}};
      plan.agent = directory / "agent";
    });
    CHECK(launched.wait() == 7);
    CHECK(launched.seconds() < 60);
    const std::string err = launched.err();
    CAPTURE(err);
    CHECK_THAT(err, Catch::Contains(what) && Catch::Contains("far-2.invalid"));
    return err;
  };
  REQUIRE(::symlink("/bin/sh", (directory / "sh").c_str()) == 0);
  const std::string answer = "shift; exec sh -c \"$*\"";  // as ssh to this machine
  CHECK_THAT(
      try_agent("case $1 in far-2*) echo no route; exit 255;; esac; " + answer, "host far-2.invalid cannot be reached"),
      Catch::Contains("no route") && !Catch::Contains("far-1"));
  CHECK_THAT(try_agent("case $1 in far-2*) PATH=" + directory.path() + ";; esac; shift; exec /bin/sh -c \"$*\"",
                       "host far-2.invalid cannot run"),
             Catch::Contains("no orted in PATH"));
  CHECK_THAT(try_agent("echo octet 0.0.1; exit 0", "host far-1.invalid has another octet"),
             Catch::Contains("2 problems"));
  CHECK_THAT(try_agent("sleep 100", "host far-1.invalid does not answer"), Catch::Contains("nothing came back"));
  if (::access("/usr/bin/ssh", X_OK) == 0) {
    LaunchedRanks launched(2, {"report"}, [](LaunchPlan& plan) {
      plan.hosts = {{"localhost", 1}, {"far.invalid", 1}};
    });
    CHECK(launched.wait() == 7);
    CHECK(launched.seconds() < 60);
    CHECK_THAT(launched.err(), Catch::Contains("host far.invalid cannot be reached"));
  }
}

TEST_CASE("ranks that do not start in time are given up", "[launch][faults]") {
  if (is_skipped()) return;
  const TemporaryDirectory directory;
  // Answers the question for the version, and then never starts the daemon.
  make_script(directory / "agent", "case \"$*\" in *--version*) shift; exec sh -c \"$*\";; *) sleep 100;; esac");
  LaunchedRanks launched(2, {"report"}, [&](LaunchPlan& plan) {
    plan.hosts = {{"localhost", 1}, {"far.invalid", 1}};
    plan.agent = directory / "agent";
    plan.start_limit_s = 1;
  });
  CHECK(launched.wait() == 7);
  CHECK_THAT(launched.err(), Catch::Contains("not all started within 1 s") && Catch::Contains("far.invalid"));
}

TEST_CASE("output that nobody reads ends no run", "[launch][faults]") {
  if (is_skipped()) return;
  const TemporaryDirectory directory;
  int pipe[2];
  REQUIRE(::pipe(pipe) == 0);
  ::close(pipe[0]);
  LaunchedRanks launched(2, {"wait", directory.path()}, {}, pipe[1]);
  ::close(pipe[1]);
  pids_in(directory, 2);
  launched.signal(SIGTERM);
  CHECK(launched.wait() == 75);
}

}  // namespace octet::test
