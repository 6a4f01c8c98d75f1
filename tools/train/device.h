// The device that a process trains on.
#pragma once

#include <memory>
#include <string>

#include "core/base/device.h"
#include "parallel/communicator.h"

namespace octet {

struct ParallelConfig;

// The CPU; or the GPU of this rank, made ready: of the GPUs of its host the one with the number of the rank among those
// of the host, from the first again where there are more ranks than GPUs. Throws kDevice where it cannot be used.
Device open_device(DeviceType type);

// What moves the memory of a GPU between the ranks of `world`, which outlives it; null where nothing need be. All ranks
// choose the same, as config.gpu_transport says; where that cannot be, each throws the same kDevice.
std::unique_ptr<Communicator> make_gpu_communicator(Communicator* world, Device device, const ParallelConfig& config);
// Why `ranks` of this host, each on a GPU, cannot talk by NCCL, as far as one process sees; empty where they can.
std::string nccl_trouble_of(int64_t ranks);

// "2 threads, avx2 kernels" or "NVIDIA H100 80GB HBM3, 79.1 GiB".
std::string describe(Device device);

}  // namespace octet
