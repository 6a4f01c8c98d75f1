// What a capture (kernels/device_runtime.h) is held to, by the CUDA runtime and by the emulated GPU alike. CUDA finds
// some of it by itself and says less; the rest would go wrong at a launch long after.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/base/error.h"

namespace octet::gpu {

class CaptureRules {
 public:
  CaptureRules() {
    require(ErrorKind::kDevice, current() == nullptr, "Capture: this thread captures already; wanted one at a time");
    now() = this;
  }
  ~CaptureRules() { end(); }
  CaptureRules(const CaptureRules&) = delete;
  CaptureRules& operator=(const CaptureRules&) = delete;
  void end() {
    if (now() == this) now() = nullptr;
  }

  // Of this thread; null where it captures nothing.
  static CaptureRules* current() { return now(); }
  // Throws where this thread captures.
  static void refuse(const char* what) {
    require(ErrorKind::kDevice, current() == nullptr,
            "{} while a step is captured; wanted work that a GPU does by itself, the same in every step", what);
  }

  void allocated(void* memory, int64_t bytes, const char* what) { live_[memory] = {bytes, what}; }
  // False for memory from before the capture: whoever launches would find it gone. It is freed after the capture.
  bool released(void* memory) {
    if (live_.erase(memory) > 0) return true;
    from_before_.push_back(memory);
    return false;
  }
  const std::vector<void*>& from_before() const { return from_before_; }
  bool is_live(void* memory) const { return live_.count(memory) > 0; }

  // What is wrong with it at its end; empty: nothing.
  std::string trouble() const {
    if (!from_before_.empty()) {
      return fmt::format("{} blocks of memory from before the capture were freed in it", from_before_.size());
    }
    if (live_.empty()) return {};
    const Block& first = live_.begin()->second;
    return fmt::format("{} blocks of memory outlive the capture, one of {} bytes for {}", live_.size(), first.bytes,
                       first.what);
  }

 private:
  static CaptureRules*& now() {
    thread_local CaptureRules* rules = nullptr;
    return rules;
  }
  struct Block {
    int64_t bytes = 0;
    const char* what = "";
  };
  std::map<void*, Block> live_;
  std::vector<void*> from_before_;
};

}  // namespace octet::gpu
