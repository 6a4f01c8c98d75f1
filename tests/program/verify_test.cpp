// octet verify as a user runs it: ranks that are threads, and ranks that mpirun started.
#include <sys/wait.h>

#include <cstdlib>

#include "parallel/mpi_communicator.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

struct Outcome {
  int code = -1;
  std::string text;
};

Outcome shell(const std::string& command) {
  const TemporaryDirectory directory;
  const std::string log = directory / "log";
  const int status = std::system((command + " > " + log + " 2>&1").c_str());
  return {.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
          .text = real_file_system().read_text(log)};
}

const std::string kOctet = OCTET_BINARY_DIR "/octet";
const std::string kVerifySteps =
    kOctet + " verify " OCTET_SOURCE_DIR "/configs/test.yaml --set model.vocab_size=300 --steps ";
const std::string kVerify = kVerifySteps + "1";
const std::string kMpirun =
    "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 ASAN_OPTIONS=detect_leaks=0 mpirun --oversubscribe ";

}  // namespace

TEST_CASE("octet verify proves layouts, and says what it has compared", "[program][verify]") {
  const Outcome some = shell(kVerify + " --layouts dp2,dp4ep2mb1,dp4ep4+two_stage,dp1+norm+swiglu");
  INFO(some.text);
  CHECK(some.code == 0);
  for (const char* name : {"dp2 ", "dp4ep2mb1 ", "dp4ep4+two_stage ", "dp1+norm+swiglu "}) {
    CHECK_THAT(some.text, Catch::Contains(name));
  }
  CHECK_THAT(some.text, Catch::Contains("All 4 layouts compute what one rank computes, bit for bit"));
  // The one layout that sums in another order: a tied head in micro-batches that alternate.
  const Outcome other =
      shell(kVerify + " --layouts dp1mb2,dp2mb1il2 --set model.tied_head=true --set precision.recipe=fp32");
  INFO(other.text);
  CHECK(other.code == 6);
  CHECK_THAT(other.text, Catch::Contains("first: step 1, gradient of model.embed_tokens.weight: "));
  CHECK_THAT(other.text, Catch::Contains("not what one rank computes: dp2mb1il2"));
}

TEST_CASE("octet verify refuses layouts before it runs any", "[program][verify]") {
  const auto refused = [](const std::string& layouts, const std::string& why) {
    const Outcome outcome = shell(kVerify + " --layouts " + layouts);
    CAPTURE(layouts, outcome.text);
    CHECK(outcome.code == 2);
    CHECK_THAT(outcome.text, Catch::Contains(why));
    CHECK_THAT(outcome.text, !Catch::Contains("equal"));
  };
  refused("dp2,dpx", "\"dpx\" is no part of a layout");
  refused("dp2,tp4", "\"tp4\" is no part of a layout");
  refused("dp2+blocks", "\"+blocks\" is no part of a layout");
  refused("dp2,dp3", "train.batch_size is 4 over 3 ranks");
  refused("dp4ep3", "parallel.ep is 3; wanted a divisor of parallel.dp, 4: 1, 2 or 4");
}

TEST_CASE("ranks of mpirun verify the layout of the configuration", "[program][verify]") {
  if (!is_mpi_built()) {
    WARN("skipped: this build has no MPI");
    return;
  }
  for (const auto& [ranks, ep] : {std::pair{"2", "1"}, std::pair{"4", "4"}}) {
    const std::string dp = std::string(" --set parallel.dp=") + ranks + " --set parallel.ep=" + ep;
    const Outcome outcome = shell(kMpirun + "-n " + ranks + " " + kVerify + dp + " --set train.micro_batch=1");
    INFO(outcome.text);
    CHECK(outcome.code == 0);
    CHECK_THAT(outcome.text, Catch::Contains("This layout computes what one rank computes, bit for bit"));
  }
}

TEST_CASE("a rank of octet verify ends by the first SIGTERM", "[program][verify][mpi]") {
  if (!is_mpi_built()) {
    WARN("skipped: this build has no MPI");
    return;
  }
  const TemporaryDirectory directory;
  const std::string script = directory / "signal.sh", table = directory / "table";
  real_file_system().write_atomically(script, kVerifySteps + "1000 > " + table +
                                                  " &\nrank=$!\n"
                                                  "until grep -q layout " +
                                                  table +
                                                  "; do kill -0 $rank || exit 1; sleep 0.05; done\n"
                                                  "kill -TERM $rank\n"
                                                  "(sleep 20; kill -KILL $rank) > /dev/null 2>&1 &\n"
                                                  "limit=$!\n"
                                                  "wait $rank\n"
                                                  "echo ended with $?\n"
                                                  "kill $limit\n");
  const Outcome outcome = shell(kMpirun + "-np 1 sh " + script);
  CHECK_THAT(outcome.text, Catch::Contains("ended with 143"));  // 128 + SIGTERM
}

}  // namespace octet::test
