// What kernels on a GPU found wrong with the numbers they were given (kernels/device_runtime.h), on its way to the
// host.
#pragma once

#include "core/tensor/transfer.h"

namespace octet {

class DeviceFault {
 public:
  // What was found until now; on the CPU, where such numbers are not looked at, nothing.
  explicit DeviceFault(Device device);
  // Throws Error(kDevice) with the first, which is then forgotten. Waits for a GPU, where nothing later was waited for.
  void rethrow() const;

 private:
  Device device_;
  Readback record_;
};

}  // namespace octet
