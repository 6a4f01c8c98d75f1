// Ranks on NVIDIA GPUs, over NCCL 2.28: one GPU, one communicator on the host, one NCCL communicator.
//
// Pieces move by grouped ncclSend and ncclRecv. NCCL's own reductions have an order of sums that depends on the
// topology, so they are not used: a sum is an exchange of pieces and an ordered sum on the GPU, with the bits of every
// other implementation. Extra memory on the GPU: as in message_communicator.h.
//
// Beside each operation the host communicator enters one that moves only what each rank is about to do and the sizes of
// its pieces: so ranks in different operations are told apart, and a missing one is named, as on CPUs, when wait is
// called. An operation that a GPU has begun has the same deadline, whoever waits for the GPU then
// (parallel/gpu_operations.h, kernels/wait_look.h). After any error the NCCL communicator is aborted, which ends its
// kernels on the GPU.
//
// Streams. Work runs on a stream of its own, after what the call's stream was given before. Where that is a stream of
// the GPU, wait returns when all ranks have entered, and what the stream is given later runs after the operation. With
// a stream of the CPU the work comes after what the device's legacy default stream was given, and wait returns when the
// GPU is done. A communicator and its groups share their stream, so that their operations run on every GPU in the order
// in which the hosts started them.
//
// Host memory moves as `host` moves it, and float64 scalars are summed there.
#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace octet {

// Why there is no NCCL here, "this octet was built without it"; empty where there is one. The others throw it.
std::string nccl_trouble();

// All ranks of `host` make theirs, each with a GPU of its own. Creates the NCCL communicator and sends a first message
// between all pairs, so that no later call sets up a connection. Throws Error(kDevice) where there is no such GPU.
std::unique_ptr<Communicator> make_nccl_communicator(std::shared_ptr<Communicator> host, int device_index,
                                                     const CommunicatorOptions& options);
// The same for a communicator that outlives it.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& host, int device_index,
                                                     const CommunicatorOptions& options);

// GPUs that this process can use; 0 where there is no driver.
int count_gpus();

}  // namespace octet
