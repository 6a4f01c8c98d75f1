// The device that a process trains on.
#pragma once

#include "core/base/device.h"

namespace octet {

// The CPU; or the GPU of this rank, made ready: of the GPUs of its host the one with the number of the rank among those
// of the host, from the first again where there are more ranks than GPUs. Throws kDevice where it cannot be used.
Device open_device(DeviceType type);

// "2 threads, avx2 kernels" or "NVIDIA H100 80GB HBM3, 79.1 GiB".
std::string describe(Device device);

}  // namespace octet
