// What the host looks at while it waits for a GPU (kernels/device_runtime.h): a wait may be in vain, since the GPU
// waits for that of a rank that has failed.
#pragma once

#include <functional>

namespace octet::gpu {

// look() is called from now on, by the thread that waits: when a wait has taken kLookEvery seconds, and again after as
// many. An error that it throws ends the wait. Not made or destroyed in a look.
class WaitLook {
 public:
  explicit WaitLook(std::function<void()> look);
  ~WaitLook();
  WaitLook(const WaitLook&) = delete;
  WaitLook& operator=(const WaitLook&) = delete;

 private:
  friend class WaitLooks;
  std::function<void()> look_;
};
inline constexpr double kLookEvery = 0.05;

// Of the runtimes: whether there is anything to look at, and a look at all of it.
bool has_wait_looks();
void look_while_waiting();

}  // namespace octet::gpu
