// Ranks on GPUs whose messages go by way of host memory: GPU memory is copied to pinned memory, moved there by another
// communicator, and copied back. Slower than NCCL (nccl_communicator.h), with the same bits; several ranks may share a
// GPU, and MPI need not know about GPUs.
//
// Streams. What is sent is copied in the order of the call's stream, and the host waits for that copy, since it moves
// the bytes itself. What came is copied back in the order of that stream when the operation is waited for: without a
// wait, and before anything that the stream is asked later. Extra memory, pinned on the host: what an operation sends
// and receives, kept for the next.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace octet {

// Moves memory of `device`, a GPU, and host memory as `host` does. Throws Error(kDevice) where there is no such GPU.
std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Communicator> host, Device device);
// The same for a communicator that outlives it.
std::unique_ptr<Communicator> make_staged_communicator(Communicator& host, Device device);

}  // namespace octet
