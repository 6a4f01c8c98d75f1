// The texts are those of Open MPI 4.1.4.
#include "tools/launch/mpirun_output.h"

#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

const std::string kRuler = std::string(74, '-') + "\n";
const std::string kPrimary = kRuler +
                             "Primary job  terminated normally, but 1 process returned\n"
                             "a non-zero exit code. Per user-direction, the job has been aborted.\n" +
                             kRuler;
const std::string kKilled =
    kRuler + "mpirun noticed that process rank 12 with PID 0 on node node3 exited on signal 9 (Killed).\n" + kRuler;
const std::string kExited = kRuler +
                            "mpirun detected that one or more processes exited with non-zero status, thus causing\n"
                            "the job to be terminated. The first process to do so was:\n"
                            "\n"
                            "  Process name: [[24931,1],3]\n"
                            "  Exit code:    75\n" +
                            kRuler;
const std::string kFailing =
    "[vm:27366] [[24931,0],0] ACTIVATE PROC [[24931,1],3] STATE EXITED WITH NON-ZERO STATUS AT ../errmgr.c:12\n"
    "[vm:27366] [[24931,0],0] ACTIVATE PROC [[24931,1],4] STATE ABORTED BY SIGNAL AT ../odls_base.c:12\n";
const std::string kRunning =
    "[vm:08324] [[19578,0],0] ACTIVATE PROC [[19578,1],1] STATE RUNNING AT ../odls_base_default_fns.c:1056\n"
    "[vm:08324] [[19578,0],0] ACTIVATE JOB [19578,1] STATE RUNNING AT ../state_base_fns.c:692\n";

}  // namespace

TEST_CASE("what the ranks write goes on, and what mpirun writes does not, in pieces of any size", "[launch]") {
  const std::string text = "first\n" + kRunning + "octet: error: a fault\n  code:  3 (data)\n" + kPrimary + "more\n" +
                           kFailing + "mpirun: Forwarding signal 10 to job\n" + kKilled + kExited +
                           "3 total processes failed to start\n"
                           "[vm:01234] 2 more processes have sent help message help-mpi-api.txt / mpi-abort\n"
                           "[rank] 3: this is a rank's\n"
                           "last";
  for (const size_t piece : {size_t(1), size_t(7), size_t(75), text.size()}) {
    CAPTURE(piece);
    MpirunOutput output;
    std::string shown;
    for (size_t at = 0; at < text.size(); at += piece) shown += output.feed(text.substr(at, piece));
    shown += output.flush();
    CHECK(shown == "first\noctet: error: a fault\n  code:  3 (data)\nmore\n[rank] 3: this is a rank's\nlast");
    CHECK(output.is_running());
    CHECK(output.has_error_block());
    REQUIRE(output.killed());
    CHECK(output.killed()->rank == 12);
    CHECK(output.killed()->host == "node3");
    CHECK(output.killed()->signal == 9);
    CHECK(output.killed()->signal_name == "Killed");
    CHECK(output.failed_rank() == 3);
    CHECK(output.complaints().empty());
  }
}

TEST_CASE("the code with which the ranks came to the end is for the launcher", "[launch]") {
  MpirunOutput output;
  CHECK_FALSE(output.ended_code());
  CHECK(output.feed("saved\noctet: the ranks ended with code 75\n") == "saved\n");
  CHECK(output.ended_code() == 75);
  CHECK_FALSE(output.has_error_block());
}

TEST_CASE("ranks run when the job does, not when one of them does", "[launch]") {
  MpirunOutput output;
  const size_t first = kRunning.find('\n') + 1;
  output.feed(kRunning.substr(0, first));
  CHECK_FALSE(output.is_running());
  output.feed(kRunning.substr(first));
  CHECK(output.is_running());
}

TEST_CASE("the first rank that fails is known by any of the ways to fail", "[launch]") {
  const std::string state = GENERATE("EXITED WITH NON-ZERO STATUS", "CALLED ABORT", "ABORTED BY SIGNAL");
  MpirunOutput output;
  output.feed("[vm:1] [[2,0],0] ACTIVATE PROC [[2,1],5] STATE NORMALLY TERMINATED AT x.c:1\n");
  CHECK_FALSE(output.failed_rank());
  output.feed("[vm:1] [[2,0],0] ACTIVATE PROC [[2,1],17] STATE " + state + " AT x.c:1\n");
  CHECK(output.failed_rank() == 17);
}

TEST_CASE("a block of a lost daemon names its host; blocks that are not known are kept", "[launch]") {
  MpirunOutput output;
  CHECK(output
            .feed(kRuler +
                  "MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD\n"
                  "with errorcode 8.\n\nNOTE: invoking MPI_ABORT causes Open MPI to kill all MPI processes.\n" +
                  kRuler)
            .empty());
  CHECK_FALSE(output.failed_rank());
  output.feed(kRuler +
              "ORTE has lost communication with a remote daemon.\n\n"
              "  HNP daemon   : [[17253,0],0] on node node1\n"
              "  Remote daemon: [[17253,0],1] on node node2\n\n"
              "This is usually due to either a failure of the TCP network\n" +
              kRuler);
  CHECK(output.lost_host() == "node2");
  output.feed(kRuler + "Something else\nhappened.\n" + kRuler);
  CHECK(output.complaints() == std::vector<std::string>{"Something else\nhappened.\n"});
}

TEST_CASE("what looked like mpirun's and was a rank's is shown after all", "[launch]") {
  MpirunOutput output;
  CHECK(output.feed("a\n" + kRuler + "a table of a rank\n") == "a\n");
  CHECK(output.flush() == kRuler + "a table of a rank\n");
  // A line without an end is shown when nothing comes, and goes on where it was.
  CHECK(output.feed("step 1").empty());
  CHECK(output.flush() == "step 1");
  CHECK(output.feed("\rstep 2\nnext\n") == "\rstep 2\nnext\n");
  CHECK(output.flush().empty());
}

}  // namespace octet::test
