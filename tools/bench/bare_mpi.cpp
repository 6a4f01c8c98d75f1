#include "tools/bench/bare_mpi.h"

#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <vector>

namespace octet {

void bare_mpi_alltoallv(const std::byte* send, std::span<const int> to, std::byte* receive, std::span<const int> from) {
  std::vector<int> to_offsets(to.size(), 0), from_offsets(from.size(), 0);
  for (size_t r = 1; r < to.size(); ++r) {
    to_offsets[r] = to_offsets[r - 1] + to[r - 1];
    from_offsets[r] = from_offsets[r - 1] + from[r - 1];
  }
  MPI_Alltoallv(send, to.data(), to_offsets.data(), MPI_BYTE, receive, from.data(), from_offsets.data(), MPI_BYTE,
                MPI_COMM_WORLD);
}

void bare_mpi_barrier() { MPI_Barrier(MPI_COMM_WORLD); }

}  // namespace octet
