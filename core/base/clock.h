// Time behind an interface: real, or set by a test.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace octet {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual int64_t monotonic_ns() = 0;  // for durations; never goes back
  virtual int64_t unix_ns() = 0;       // for people; may jump
  double seconds() { return double(monotonic_ns()) * 1e-9; }
};

class RealClock final : public Clock {
 public:
  int64_t monotonic_ns() override {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  int64_t unix_ns() override {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
        .count();
  }
};

// Stands still until a test moves it.
class ManualClock final : public Clock {
 public:
  int64_t monotonic_ns() override { return now_ns_; }
  int64_t unix_ns() override { return unix_ns_; }
  void advance_ns(int64_t by) { now_ns_ += by, unix_ns_ += by; }
  void set_unix_ns(int64_t at) { unix_ns_ = at; }

 private:
  int64_t now_ns_ = 0, unix_ns_ = 0;
};

inline Clock& real_clock() {
  static RealClock clock;
  return clock;
}

}  // namespace octet
