#include "tools/train/end_with_parent.h"

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "core/base/error.h"

namespace octet {
namespace {

pid_t parent = 0;

void handle(int) {
  // The system also sends the signal when only the thread that started this process has ended; mpirun starts many ranks
  // by threads of their own. And a person may send it.
  if (::getppid() != parent) ::_exit(exit_code(ErrorKind::kCommunication));
}

}  // namespace

void end_with_parent() {
  parent = ::getppid();
  struct sigaction action {};
  action.sa_handler = handle;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGCONT, &action, nullptr);
  ::prctl(PR_SET_PDEATHSIG, SIGCONT);
}

}  // namespace octet
