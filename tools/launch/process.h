// Other programs, and signals while they run.
#pragma once

#include <signal.h>

#include <functional>
#include <string>
#include <vector>

namespace octet {

// The path of a program that PATH names, or `name` itself where it has a slash; "" where there is none that can be run.
std::string find_program(const std::string& name);

struct Command {
  std::vector<std::string> argv;  // argv[0] is a path
  std::string input = {};         // its stdin
};
struct Finished {
  int code = -1;       // 128 + signal where one ended it
  std::string output;  // stdout and stderr, at most 64 KiB
  bool is_late = false;
};
// Runs all of them side by side and returns when all have ended. Those that have not after limit_s, or when is_stopped
// says so, are killed and marked late.
std::vector<Finished> run_all(const std::vector<Command>& commands, double limit_s,
                              const std::function<bool()>& is_stopped = {});

// SIGTERM, SIGINT, SIGHUP and SIGUSR1 wait to be taken, for the life of the object; those that this process ignores
// (nohup) stay ignored. SIGCHLD ends a wait. To be made before any thread, which inherits what is held back.
class HeldSignals {
 public:
  HeldSignals();
  ~HeldSignals();
  HeldSignals(const HeldSignals&) = delete;
  HeldSignals& operator=(const HeldSignals&) = delete;

  // A signal, SIGCHLD among them, or 0 when wait_s have passed.
  int take(double wait_s);
  // What was held back before this object: for the child of a fork.
  const sigset_t& before() const { return before_; }

 private:
  sigset_t held_, before_;
};

}  // namespace octet
