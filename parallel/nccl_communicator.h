// Ranks on NVIDIA GPUs, over NCCL 2.28: one GPU, one communicator on the host, one NCCL communicator.
//
// Pieces move by grouped ncclSend and ncclRecv. NCCL's own reductions have an order of sums that depends on the
// topology, so they are not used: a sum is an exchange of pieces and an ordered sum on the GPU, with the bits of every
// other implementation. Extra memory on the GPU: as in message_communicator.h.
//
// Beside each operation the host communicator enters one that moves only what each rank is about to do and the sizes of
// its pieces: so ranks in different operations are told apart, and a missing one is named, as on CPUs, when wait is
// called. A wait for the GPU has the same deadline. After any error the NCCL communicator is aborted, which ends its
// kernels on the GPU.
//
// Streams. Work runs on a stream of its own, after what the call's stream was given before. Where that is a stream of
// the GPU, wait returns when all ranks have entered, and what the stream is given later runs after the operation: a GPU
// that hangs in it is then found by whoever waits for the stream. With a stream of the CPU the work comes after what
// the device's legacy default stream was given, and wait returns when the GPU is done. float64 scalars are in host
// memory and are summed there.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace octet {

// All ranks of `host` make theirs, each with a GPU of its own. Creates the NCCL communicator and sends a first message
// between all pairs, so that no later call sets up a connection. Throws Error(kDevice) where there is no such GPU.
std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host, int device_index,
                                                     const CommunicatorOptions& options);

// GPUs that this process can use; 0 where there is no driver.
int count_gpus();

}  // namespace octet
