// octet launch: mpirun as a child that is told what to do in signals it understands, and answered for in the exit codes
// of the program.
//
// - SIGTERM, SIGINT and SIGHUP become SIGUSR1 to mpirun, which passes it to every rank at once; the ranks save and end
//   with 75. SIGTERM to mpirun itself would leave them two seconds. Before all ranks have been started there is nothing
//   to save: then mpirun is ended, and the code is 75 too.
// - A second SIGINT kills the ranks; the code is 130.
// - mpirun is in a process group of its own, so that Ctrl-C reaches it by this way only, and ends with this process,
//   however that ends.
// - An mpirun that cannot end, since a host does not answer any more, is killed ten seconds after a rank has failed.
// - The code is that of the first rank that failed. A rank that was ended by a signal, a host that is lost, or ranks
//   that could not be started give 7.
#pragma once

#include "tools/launch/launch_plan.h"

namespace octet {

// Checks the plan, mpirun and every other host, runs the ranks, and returns their code. Throws for what only this
// process can tell.
int launch(const LaunchPlan& plan);

}  // namespace octet
