// Ranks started by mpirun (or by srun with PMIx), on one machine or many. Written for Open MPI 4.1 and free of what
// only it has.
//
// Only MPI_Isend, MPI_Irecv and MPI_Testsome are used, since MPI has no call that waits with a deadline; groups and
// collectives are made of them (message_communicator.h). The level of threads is MPI_THREAD_SERIALIZED: every call is
// made under one lock and returns at once, so that a thread beside the one that computes can move messages too, and
// nothing depends on the less trodden MPI_THREAD_MULTIPLE. Errors come back as Error(kCommunication).
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace octet {

// Whether this program was built with MPI.
bool is_mpi_built();

// Whether this process was started as a rank: the launcher has set OMPI_COMM_WORLD_SIZE or PMIX_RANK. Does not touch
// MPI.
bool is_mpi_rank();

// Initialises MPI, once in a process, and meets the other ranks. Throws Error(kArgument) without MPI, or outside of a
// launch: a process by itself never initialises MPI.
// When the last communicator made from it is destroyed, waits for the other ranks and finalises MPI. After an error it
// does not, since MPI would wait for ranks that do not come: the process then ends by mpi_abort or by a code other than
// 0, either of which makes mpirun end the other ranks.
std::unique_ptr<Communicator> make_mpi_communicator(const CommunicatorOptions& options);

// Ends every rank of the launch. mpirun returns this code.
[[noreturn]] void mpi_abort(int exit_code);

}  // namespace octet
