// Tells a running program that it was asked to stop: SIGINT, SIGTERM or SIGUSR1 (a batch system's warning).
#pragma once

namespace octet {

// Catches the signals for the life of the object, of several for the life of all. The first signal asks; a second
// SIGINT ends the process at once with exit code 130, for a person who will not wait for the save.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // Catches them to the end of the process: one that comes while it closes would take its exit code away.
  static void catch_for_good();
  static bool asked();
  static const char* name();  // "SIGTERM"; "" before any
};

}  // namespace octet
