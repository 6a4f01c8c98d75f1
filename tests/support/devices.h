// The devices that a test can run on here: the CPU, and a GPU where this build and machine have one, or emulate it.
#pragma once

#include <iostream>
#include <vector>

#include "kernels/device_runtime.h"
#ifdef OCTET_EMULATE_CUDA
#include "kernels/cuda/emulation/block.h"
#endif

namespace octet::test {

inline constexpr Device kGpu{.type = DeviceType::kCuda, .index = 0};

inline bool has_gpu() {
  static const bool found = [] {
    const gpu::Runtime runtime = gpu::runtime();
    if (runtime.count == 0) {
      std::cout << "skipped: what a GPU would run (" << gpu::built_for() << ": " << runtime.trouble << ")\n";
      return false;
    }
    gpu::open(kGpu);
    return true;
  }();
  return found;
}

inline std::vector<Device> devices_here() {
  std::vector<Device> devices = {Device{}};
  if (has_gpu()) devices.push_back(kGpu);
  return devices;
}

// While it lives an emulated GPU runs the threads and blocks of every kernel in the other order; a real one has none.
class ReversedGpu {
 public:
#ifdef OCTET_EMULATE_CUDA
  ReversedGpu() { emulation::set_order(emulation::Order::kBackward); }
  ~ReversedGpu() { emulation::set_order(emulation::Order::kForward); }
#else
  ReversedGpu() {}
  ~ReversedGpu() {}
#endif
  ReversedGpu(const ReversedGpu&) = delete;
  ReversedGpu& operator=(const ReversedGpu&) = delete;
};

}  // namespace octet::test
