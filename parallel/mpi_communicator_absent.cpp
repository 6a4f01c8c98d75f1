// For a build without MPI.
#include <cstdlib>

#include "parallel/mpi_communicator.h"

namespace octet {

bool is_mpi_built() { return false; }

bool is_mpi_rank() { return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr; }

std::unique_ptr<Communicator> make_mpi_communicator(const CommunicatorOptions&) {
  fail(ErrorKind::kArgument, {.what = "this build of Octet has no MPI",
                              .where = {},
                              .why = "it was built where no MPI was found, or with OCTET_MPI=OFF",
                              .fix = "install libopenmpi-dev and openmpi-bin, and build again"});
}

void mpi_abort(int exit_code) { std::_Exit(exit_code); }

}  // namespace octet
