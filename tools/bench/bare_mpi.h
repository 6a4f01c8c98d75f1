// MPI by itself, the rival of our communicator.
#pragma once

#include <cstddef>
#include <span>

namespace octet {

// MPI_Alltoallv of bytes between the ranks of a launch that has initialised MPI: counts to and from each rank, one
// piece after the other.
void bare_mpi_alltoallv(const std::byte* send, std::span<const int> to, std::byte* receive, std::span<const int> from);
void bare_mpi_barrier();

}  // namespace octet
