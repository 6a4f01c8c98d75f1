// How many blocks a persistent grid has: one for each multiprocessor of the GPU. Defined beside the device's runtime.
#pragma once

#include "core/base/device.h"

namespace octet::gpu {

int multiprocessors(Device device);

}  // namespace octet::gpu
