// Dispatch and combine between ranks, against MPI_Alltoallv of the same bytes.
#pragma once

#include <string>
#include <vector>

namespace octet {

int bench_dispatch(const std::vector<std::string>& args);

}  // namespace octet
