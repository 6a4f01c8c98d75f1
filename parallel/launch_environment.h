// What the launcher of a rank tells it by environment variables, before it has met any other.
#pragma once

namespace octet {

// Ranks on this host, as mpirun or srun say; 1 where neither does.
int local_ranks();
// This rank, as mpirun or srun say; 0 where neither does.
int launched_rank();
// The number of this rank among those of its host; 0 where neither says it.
int local_rank();

}  // namespace octet
