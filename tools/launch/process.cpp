#include "tools/launch/process.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>

#include "core/base/error.h"
#include "core/base/file_system.h"

namespace octet {
namespace {

using SteadyClock = std::chrono::steady_clock;

bool can_be_run(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && ::access(path.c_str(), X_OK) == 0;
}

// A file in memory, so that nobody has to read a pipe for a program to go on.
int memory_file() {
  const int fd = ::memfd_create("octet", MFD_CLOEXEC);
  require(ErrorKind::kMemory, fd >= 0, "launch: no memory for what a program prints");
  return fd;
}

std::string content_of(int fd) {
  constexpr size_t kMostBytes = 64 << 10;
  std::string text(kMostBytes, '\0');
  const ssize_t bytes = ::pread(fd, text.data(), text.size(), 0);
  text.resize(bytes > 0 ? size_t(bytes) : 0);
  return text;
}

struct Running {
  pid_t pid = -1;
  int output = -1;
};

Running start(const Command& command) {
  std::vector<char*> argv;
  for (const std::string& word : command.argv) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const int input = memory_file();
  Running running{.output = memory_file()};
  for (size_t done = 0; done < command.input.size();) {
    const ssize_t bytes = ::write(input, command.input.data() + done, command.input.size() - done);
    require(ErrorKind::kMemory, bytes > 0, "launch: no memory for {} bytes of input", command.input.size());
    done += size_t(bytes);
  }
  ::lseek(input, 0, SEEK_SET);
  const pid_t parent = ::getpid();
  running.pid = ::fork();
  require(ErrorKind::kMemory, running.pid >= 0, "launch: no process could be made for {}", command.argv[0]);
  if (running.pid == 0) {
    ::setpgid(0, 0);  // what it starts is killed with it
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(127);
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    if (::dup2(input, 0) < 0 || ::dup2(running.output, 1) < 0 || ::dup2(running.output, 2) < 0) ::_exit(127);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  ::setpgid(running.pid, running.pid);  // whichever of the two comes first
  ::close(input);
  return running;
}

}  // namespace

std::string find_program(const std::string& name) {
  if (name.find('/') != std::string::npos) return can_be_run(name) ? name : std::string();
  const char* path = std::getenv("PATH");
  std::string_view rest = path != nullptr ? path : "/usr/local/bin:/usr/bin:/bin";
  while (true) {
    const size_t end = std::min(rest.find(':'), rest.size());
    const std::string candidate = join_path(end == 0 ? "." : rest.substr(0, end), name);
    if (can_be_run(candidate)) return candidate;
    if (end == rest.size()) return {};
    rest.remove_prefix(end + 1);
  }
}

std::vector<Finished> run_all(const std::vector<Command>& commands, double limit_s,
                              const std::function<bool()>& is_stopped) {
  const auto end = SteadyClock::now() + std::chrono::duration<double>(limit_s);
  std::vector<Running> running;
  for (const Command& command : commands) running.push_back(start(command));
  std::vector<Finished> finished(commands.size());
  for (size_t open = commands.size(); open > 0;) {
    const bool is_late = SteadyClock::now() >= end || (is_stopped && is_stopped());
    for (size_t i = 0; i < running.size(); ++i) {
      Running& each = running[i];
      if (each.pid < 0) continue;
      if (is_late) ::kill(-each.pid, SIGKILL), finished[i].is_late = true;
      int status = 0;
      if (::waitpid(each.pid, &status, is_late ? 0 : WNOHANG) != each.pid) continue;
      finished[i].code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      finished[i].output = content_of(each.output);
      ::close(each.output);
      each.pid = -1;
      --open;
    }
    if (open > 0) ::usleep(5000);
  }
  return finished;
}

HeldSignals::HeldSignals() {
  ::sigemptyset(&held_);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGCHLD}) {
    struct sigaction action {};
    ::sigaction(signal, nullptr, &action);
    if (signal == SIGCHLD || action.sa_handler != SIG_IGN) ::sigaddset(&held_, signal);
  }
  ::pthread_sigmask(SIG_BLOCK, &held_, &before_);
}

HeldSignals::~HeldSignals() {
  while (take(0) != 0) {  // what nobody took has been seen to
  }
  ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

int HeldSignals::take(double wait_s) {
  const auto seconds = time_t(wait_s);
  const timespec wait{.tv_sec = seconds, .tv_nsec = long((wait_s - double(seconds)) * 1e9)};
  const int signal = ::sigtimedwait(&held_, nullptr, &wait);
  return signal > 0 ? signal : 0;
}

}  // namespace octet
