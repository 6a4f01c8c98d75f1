#include "tools/launch/launcher.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>

#include "core/base/error.h"
#include "core/base/exit_code.h"
#include "core/base/file_system.h"
#include "core/base/log.h"
#include "tools/launch/mpirun_output.h"
#include "tools/launch/process.h"
#include "tools/launch/shell.h"
#include "tools/train/rank_output.h"

namespace octet {
namespace {

using SteadyClock = std::chrono::steady_clock;

double seconds_since(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

bool is_stop(int signal) { return signal != 0 && signal != SIGCHLD; }

// One line of many: for `why`.
std::string in_one_line(const std::string& text) {
  std::string line;
  for (const char c : text) {
    const bool is_space = c == '\n' || c == '\r' || c == '\t' || c == ' ';
    if (!is_space) {
      line += c;
    } else if (!line.empty() && line.back() != ' ') {
      line += ' ';
    }
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  constexpr size_t kMostBytes = 500;
  if (line.size() > kMostBytes) line = line.substr(0, kMostBytes) + " ...";
  return line;
}

// The path of an mpirun whose signals, codes and messages are known here.
std::string find_mpirun(const LaunchPlan& plan) {
  const std::string path = find_program(plan.mpirun);
  if (path.empty()) {
    fail(ErrorKind::kArgument, {.what = fmt::format("{} was not found", plan.mpirun),
                                .where = "PATH",
                                .why = "ranks are started by Open MPI",
                                .fix = "install it: apt-get install openmpi-bin"});
  }
  const Finished version = run_all({{.argv = {path, "--version"}}}, 20).front();
  const auto says = [&version](const char* text) { return version.output.find(text) != std::string::npos; };
  if (version.code != 0 || !(says("(Open MPI) 4.") || says("(OpenRTE) 4."))) {
    fail(ErrorKind::kArgument,
         {.what = fmt::format("{} is not Open MPI 4", path),
          .where = fmt::format("{} --version says: {}", path, in_one_line(version.output)),
          .why = "the signals, codes and messages of another mpirun are not known to octet launch",
          .fix = "put Open MPI 4 first in PATH (apt-get install openmpi-bin), or start the ranks by hand: mpirun -n " +
                 fmt::format("{} {} {}", plan.ranks, plan.program, shell_line(plan.args))});
  }
  return path;
}

// Whether every other host can be reached and has what a launch needs there, each asked by the agent with which mpirun
// would start it. Returns false where a signal came meanwhile.
bool check_hosts(const LaunchPlan& plan, HeldSignals& signals) {
  std::vector<std::string> others;
  for (const LaunchHost& host : plan.hosts) {
    if (!is_this_machine(host.name)) others.push_back(host.name);
  }
  if (others.empty()) return true;
  const std::vector<std::string> agent = agent_words(plan);
  const std::string agent_path = agent.empty() ? std::string() : find_program(agent[0]);
  if (agent_path.empty()) {
    fail(ErrorKind::kArgument,
         {.what = fmt::format("{} was not found", agent.empty() ? "\"\"" : agent[0]),
          .where = plan.agent.empty() ? "PATH" : "--agent " + plan.agent,
          .why = fmt::format("it would start the ranks on {}", others.front()),
          .fix = "install it (apt-get install openssh-client), or name another: --agent COMMAND"});
  }
  const std::string question = fmt::format(
      "command -v orted >/dev/null 2>&1 || {{ echo Open MPI is not there: no orted in PATH; exit 2; }}; "
      "exec {} --version",
      quote_for_shell(plan.program));
  std::vector<Command> commands;
  for (const std::string& host : others) {
    Command command{.argv = {agent_path}};
    command.argv.insert(command.argv.end(), agent.begin() + 1, agent.end());
    command.argv.push_back(host);
    command.argv.push_back(shell_line({"sh", "-c", question}));
    commands.push_back(std::move(command));
  }
  bool is_stopped = false;
  constexpr double kLimitSeconds = 15;
  const std::vector<Finished> answers = run_all(commands, kLimitSeconds, [&] {
    for (int signal = signals.take(0); signal != 0; signal = signals.take(0))
      is_stopped = is_stopped || is_stop(signal);
    return is_stopped;
  });
  if (is_stopped) return false;
  std::vector<Report> problems;
  for (size_t i = 0; i < others.size(); ++i) {
    const Finished& answer = answers[i];
    const std::string said = in_one_line(answer.output);
    // A host may greet before it answers.
    const bool has_version =
        answer.output.starts_with(plan.version) || answer.output.find("\n" + plan.version) != std::string::npos;
    if (!answer.is_late && answer.code == 0 && (plan.version.empty() || has_version)) continue;
    const std::string how = shell_line(agent) + " " + others[i];
    Report problem{.what = answer.is_late       ? fmt::format("host {} does not answer", others[i])
                           : answer.code == 0   ? fmt::format("host {} has another octet", others[i])
                           : answer.code == 255 ? fmt::format("host {} cannot be reached", others[i])
                                                : fmt::format("host {} cannot run {}", others[i], plan.program),
                   .where = fmt::format("{} from this machine", how),
                   .why = answer.is_late ? fmt::format("nothing came back for {} s", int(kLimitSeconds))
                                         : (said.empty() ? fmt::format("exit code {}", answer.code) : said),
                   .fix = answer.code == 0 && !answer.is_late
                              ? fmt::format("install {} there, at {}", plan.version, plan.program)
                              : fmt::format("this must work, without a question: {} {} --version", how,
                                            quote_for_shell(plan.program))};
    problems.push_back(std::move(problem));
  }
  if (!problems.empty()) fail(ErrorKind::kCommunication, "hosts cannot take part", std::move(problems));
  return true;
}

// Writes all of it, or gives up: a reader that is gone does not end a training run.
void write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t bytes = ::write(fd, text.data(), text.size());
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes < 0 && errno == EAGAIN) {
      pollfd ready{.fd = fd, .events = POLLOUT, .revents = 0};
      ::poll(&ready, 1, 1000);
      continue;
    }
    if (bytes <= 0) return;
    text.remove_prefix(size_t(bytes));
  }
}

// mpirun, running, with its output passed on. Where one is left, it is killed with the object.
class Mpirun {
 public:
  Mpirun(const std::vector<std::string>& words, const sigset_t& signals_before) {
    std::vector<char*> argv;
    for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    require(ErrorKind::kMemory, ::pipe2(out_, O_CLOEXEC) == 0 && ::pipe2(error_, O_CLOEXEC) == 0,
            "launch: no pipes for the output of mpirun");
    const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    const pid_t parent = ::getpid();
    pid_ = ::fork();
    require(ErrorKind::kMemory, pid_ >= 0, "launch: no process could be made for {}", words[0]);
    if (pid_ == 0) {
      ::setpgid(0, 0);
      ::prctl(PR_SET_PDEATHSIG, SIGTERM);  // on which it ends all ranks, stopped ones too, within four seconds
      if (::getppid() != parent) ::_exit(127);
      ::signal(SIGPIPE, SIG_DFL);
      ::pthread_sigmask(SIG_SETMASK, &signals_before, nullptr);
      if (::dup2(null, 0) < 0 || ::dup2(out_[1], 1) < 0 || ::dup2(error_[1], 2) < 0) ::_exit(127);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    ::close(null);
    ::close(out_[1]);
    ::close(error_[1]);
    forward_out_ = std::thread([this] { forward(out_[0], STDOUT_FILENO, /*is_error=*/false); });
    forward_error_ = std::thread([this] { forward(error_[0], STDERR_FILENO, /*is_error=*/true); });
  }

  ~Mpirun() {
    if (!has_ended()) {
      kill_ranks();
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    finish_output();
  }
  Mpirun(const Mpirun&) = delete;
  Mpirun& operator=(const Mpirun&) = delete;

  void signal(int number) { ::kill(pid_, number); }

  // The ranks that it has started on this machine, and agents; its children, that is. It sees to other machines itself.
  void kill_ranks() {
    std::error_code ignored;
    for (const auto& thread : std::filesystem::directory_iterator(fmt::format("/proc/{}/task", pid_), ignored)) {
      std::ifstream children(thread.path() / "children");
      for (pid_t child = 0; children >> child;) ::kill(child, SIGKILL);
    }
  }

  bool has_ended() {
    if (!status_) {
      int status = 0;
      if (::waitpid(pid_, &status, WNOHANG) == pid_) status_ = status;
    }
    return status_.has_value();
  }
  int code() const { return WIFEXITED(*status_) ? WEXITSTATUS(*status_) : 128 + WTERMSIG(*status_); }

  bool is_running() const { return is_running_.load(); }
  bool has_failed() const { return has_failed_.load(); }  // a rank has

  // To be called when it has ended: passes on what is left of its output, and returns what it said.
  const MpirunOutput& finish_output() {
    is_over_.store(true);
    if (forward_out_.joinable()) forward_out_.join();
    if (forward_error_.joinable()) forward_error_.join();
    return output_;
  }

 private:
  // Until the end of the pipe; or, once mpirun has ended, until nothing comes: an agent may still hold the pipe open.
  void forward(int from, int to, bool is_error) {
    char text[16384];
    while (true) {
      constexpr int kQuietMs = 200;
      pollfd ready{.fd = from, .events = POLLIN, .revents = 0};
      const int count = ::poll(&ready, 1, kQuietMs);
      if (count < 0 && errno == EINTR) continue;
      if (count == 0) {
        if (is_error) write_all(to, output_.flush());
        if (is_over_.load()) break;
        continue;
      }
      const ssize_t bytes = ::read(from, text, sizeof text);
      if (bytes < 0 && errno == EINTR) continue;
      if (bytes <= 0) break;
      const std::string_view piece(text, size_t(bytes));
      if (is_error) {
        const std::string shown = output_.feed(piece);
        if (output_.is_running()) is_running_.store(true);
        if (output_.failed_rank()) has_failed_.store(true);
        write_all(to, shown);
      } else {
        write_all(to, piece);
      }
    }
    if (is_error) write_all(to, output_.flush());
    ::close(from);
  }

  int out_[2] = {-1, -1}, error_[2] = {-1, -1};
  pid_t pid_ = -1;
  std::optional<int> status_;
  MpirunOutput output_;  // of the thread that forwards stderr, until it has been joined
  std::atomic<bool> is_running_{false}, has_failed_{false}, is_over_{false};
  std::thread forward_out_, forward_error_;
};

std::string log_of(const LaunchPlan& plan, int64_t rank) {
  return plan.run_dir.empty() ? std::string() : RankOutput::path_of(int(rank), plan.run_dir);
}

bool asks_to_stop(int signal) { return signal == SIGUSR1 || signal == SIGTERM || signal == SIGINT; }

// The launcher's code for mpirun's. Throws or logs what no rank has told the user.
int answer_for(const LaunchPlan& plan, int code, const MpirunOutput& output, bool is_stopped) {
  const auto tell = [&](ErrorKind kind, Report report) {
    if (!output.has_error_block()) fail(kind, std::move(report));
    log_error("{}; {}", report.what, report.where);  // rank 0 has said why
    return exit_code(kind);
  };
  if (output.killed()) {
    const MpirunOutput::Killed& killed = *output.killed();
    // Asked to stop, here or by somebody who told that rank, before it had come to where it would have saved.
    if (asks_to_stop(killed.signal)) return kExitSavedAndRequeue;
    return tell(
        ErrorKind::kCommunication,
        {.what = fmt::format("rank {} was ended by signal {}, {}", killed.rank, killed.signal, killed.signal_name),
         .where = fmt::format("rank {} (host {}); its log is {}", killed.rank, killed.host, log_of(plan, killed.rank)),
         .why = killed.signal == SIGKILL ? "the system kills processes when memory is short; dmesg would say so"
                                         : "the other ranks were ended with it",
         .fix = "the same command goes on from the newest checkpoint"});
  }
  if (!output.lost_host().empty()) {
    return tell(
        ErrorKind::kCommunication,
        {.what = fmt::format("the connection to host {} is lost", output.lost_host()),
         .where = fmt::format("host {}, as mpirun on this machine sees it", output.lost_host()),
         .why = "the ranks were ended",
         .fix = "look at that host and the network to it; the same command goes on from the newest checkpoint"});
  }
  if (output.ended_code()) return *output.ended_code();
  if (code == 0) return 0;
  const bool is_ours = !meaning_of_code(code).empty() || code == kExitSavedAndRequeue;
  const std::optional<int64_t> rank = output.failed_rank();
  const std::string where =
      rank ? fmt::format("rank {}; its log is {}", *rank, log_of(plan, *rank)) : "mpirun, on this machine";
  if (is_ours) {
    if (code != kExitSavedAndRequeue && !output.has_error_block()) {
      log_error("the ranks ended with code {} ({}): {}", code, meaning_of_code(code), where);
    }
    return code;
  }
  if (is_stopped) return kExitSavedAndRequeue;  // while it was starting the ranks
  // Of a rank that a signal ended while it was starting, mpirun may give only this number.
  if (rank && asks_to_stop(code - 128)) return kExitSavedAndRequeue;
  std::string said;
  for (const std::string& complaint : output.complaints()) said += (said.empty() ? "" : " ") + complaint;
  return tell(
      ErrorKind::kCommunication,
      {.what = output.is_running() ? fmt::format("{} ended with code {}", rank ? "a rank" : "mpirun", code)
                                   : fmt::format("the ranks could not be started; mpirun ended with code {}", code),
       .where = where,
       .why = in_one_line(said),
       .fix = fmt::format("to see it by itself: {}", shell_line(mpirun_command(plan, plan.mpirun)))});
}

}  // namespace

int launch(const LaunchPlan& plan) {
  check_plan(plan);
  HeldSignals signals;
  const std::string mpirun_path = find_mpirun(plan);
  if (!check_hosts(plan, signals)) return kExitSavedAndRequeue;

  const auto before_pipe = std::signal(SIGPIPE, SIG_IGN);
  Mpirun mpirun(mpirun_command(plan, mpirun_path), signals.before());
  const auto started = SteadyClock::now();
  int stops = 0;
  bool is_ended_early = false, is_too_late = false;
  std::optional<SteadyClock::time_point> told_to_end, failed;
  while (!mpirun.has_ended()) {
    const int signal = signals.take(0.25);
    if (is_stop(signal)) {
      if (signal == SIGINT && stops > 0) {
        mpirun.signal(SIGTERM);
        mpirun.kill_ranks();
        for (int i = 0; i < 100 && !mpirun.has_ended(); ++i) signals.take(0.05);
        return 130;
      }
      if (stops++ == 0 || signal == SIGUSR1) {
        if (mpirun.is_running()) {
          mpirun.signal(SIGUSR1);
        } else if (!told_to_end) {
          mpirun.signal(SIGTERM);
          told_to_end = SteadyClock::now();
          is_ended_early = true;
        }
      }
    }
    if (!mpirun.is_running() && !told_to_end && seconds_since(started) > plan.start_limit_s) {
      mpirun.signal(SIGTERM);
      told_to_end = SteadyClock::now();
      is_too_late = true;
    }
    if (mpirun.has_failed() && !failed) failed = SteadyClock::now();
    if ((told_to_end && seconds_since(*told_to_end) > 6) || (failed && seconds_since(*failed) > 10)) {
      mpirun.kill_ranks();
      mpirun.signal(SIGKILL);
    }
  }
  const MpirunOutput& output = mpirun.finish_output();
  std::signal(SIGPIPE, before_pipe);
  if (is_ended_early) return kExitSavedAndRequeue;
  if (is_too_late) {
    std::string list;
    for (const LaunchHost& host : plan.hosts) list += (list.empty() ? "hosts " : ", ") + host.name;
    fail(ErrorKind::kCommunication,
         {.what = fmt::format("the ranks were not all started within {} s", int(plan.start_limit_s)),
          .where = list.empty() ? "this machine" : list,
          .why = "a host cannot reach this one, or is very slow",
          .fix = "name the network that all hosts share: --interface eth1, or --interface 10.0.0.0/8"});
  }
  const bool is_stuck = failed && mpirun.code() == 128 + SIGKILL;
  const int code = is_stuck ? output.error_code().value_or(exit_code(ErrorKind::kCommunication)) : mpirun.code();
  return answer_for(plan, code, output, stops > 0);
}

}  // namespace octet
