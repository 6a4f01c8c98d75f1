#include "tools/train/stop_signal.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <mutex>

namespace octet {
namespace {

std::atomic<int> asked_by{0};
constexpr int kSignals[] = {SIGINT, SIGTERM, SIGUSR1};
struct sigaction before[3];
std::mutex one_at_a_time;
int alive = 0;

void handle(int signal) {
  if (signal == SIGINT && asked_by.load() == SIGINT) ::_exit(128 + SIGINT);
  asked_by.store(signal);
}

void begin() {
  const std::lock_guard lock(one_at_a_time);
  if (alive++ > 0) return;
  asked_by.store(0);
  struct sigaction action {};
  action.sa_handler = handle;
  action.sa_flags = SA_RESTART;  // a save that is under way goes on
  for (int i = 0; i < 3; ++i) ::sigaction(kSignals[i], &action, &before[i]);
}

}  // namespace

StopSignal::StopSignal() { begin(); }

StopSignal::~StopSignal() {
  const std::lock_guard lock(one_at_a_time);
  if (--alive > 0) return;
  for (int i = 0; i < 3; ++i) ::sigaction(kSignals[i], &before[i], nullptr);
}

void StopSignal::catch_for_good() { begin(); }

bool StopSignal::asked() { return asked_by.load() != 0; }

const char* StopSignal::name() {
  switch (asked_by.load()) {
    case SIGINT:
      return "SIGINT";
    case SIGTERM:
      return "SIGTERM";
    case SIGUSR1:
      return "SIGUSR1";
    default:
      return "";
  }
}

}  // namespace octet
