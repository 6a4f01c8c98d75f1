// For ranks: no rank outlives the launch that started it, not even one that is stopped.
#pragma once

namespace octet {

// From now on this process ends with code 7 when its parent, mpirun or the daemon of Open MPI on this host, is gone,
// however that ended. Takes SIGCONT, which a process gets even while it is stopped. To be called once.
void end_with_parent();

}  // namespace octet
