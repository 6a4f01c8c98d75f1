// Bounds of memory and time for hostile input.
#pragma once

#include <cstdint>
#include <ctime>
#include <fstream>
#include <string>

namespace octet::test {

#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kIsSanitized = true;  // sanitizers keep freed memory and slow everything down
#else
inline constexpr bool kIsSanitized = false;
#endif

// The peak of this process's memory above what it held at the start of the object, and the processor time since then.
// The time is no measurement of speed: it is there to find work that grows with the square of the input, and such work
// takes a hundred times what it should. A busy machine takes two or three times as long as an idle one.
class Cost {
 public:
  Cost() {
    std::ofstream("/proc/self/clear_refs") << "5";  // starts the peak anew
    start_bytes_ = peak_bytes();
    start_ = std::clock();
  }
  // `seconds` are those of an idle machine.
  bool is_within(uint64_t bytes, double seconds) const {
    const double took = double(std::clock() - start_) / CLOCKS_PER_SEC;
    if (kIsSanitized) return took <= 50 * seconds;
    return peak_bytes() - start_bytes_ <= bytes && took <= 10 * seconds;
  }

 private:
  static uint64_t peak_bytes() {
    std::ifstream status("/proc/self/status");
    std::string word;
    uint64_t kilobytes = 0;
    while (status >> word) {
      if (word == "VmHWM:") {
        status >> kilobytes;
        break;
      }
    }
    return kilobytes * 1024;
  }

  uint64_t start_bytes_ = 0;
  std::clock_t start_ = 0;
};

}  // namespace octet::test
