// Ranks on NVIDIA GPUs whose messages go by way of host memory: GPU memory is copied to pinned memory, moved there by
// another communicator, and copied back. Slower than NCCL (nccl_communicator.h), with the same bits; several ranks may
// share a GPU, and MPI need not know about GPUs.
//
// Streams. What is sent is copied after what was given to the device's legacy default stream before; wait returns when
// what came is on the GPU. Extra memory, pinned on the host: what an operation sends and receives, kept for the next.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace octet {

// Moves memory of cuda:device_index, and host memory as `host` does. Throws Error(kDevice) where there is no such GPU.
std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Communicator> host, int device_index);

}  // namespace octet
