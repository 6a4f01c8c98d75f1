#include "kernels/wait_look.h"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

namespace octet::gpu {

class WaitLooks {
 public:
  static WaitLooks& all() {
    static auto* const instance = new WaitLooks;  // the last stream may end after what is static
    return *instance;
  }
  void add(const WaitLook& look) {
    const std::lock_guard lock(mutex_);
    looks_.push_back(&look);
  }
  void remove(const WaitLook& look) {
    const std::lock_guard lock(mutex_);
    std::erase(looks_, &look);
  }
  bool is_empty() {
    const std::lock_guard lock(mutex_);
    return looks_.empty();
  }
  void look() {
    const std::lock_guard lock(mutex_);
    for (const WaitLook* each : looks_) each->look_();
  }

 private:
  std::mutex mutex_;
  std::vector<const WaitLook*> looks_;
};

WaitLook::WaitLook(std::function<void()> look) : look_(std::move(look)) { WaitLooks::all().add(*this); }
WaitLook::~WaitLook() { WaitLooks::all().remove(*this); }

bool has_wait_looks() { return !WaitLooks::all().is_empty(); }
void look_while_waiting() { WaitLooks::all().look(); }

}  // namespace octet::gpu
