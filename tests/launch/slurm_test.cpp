// The batch script, run by bash with programs in place of srun, sbatch and scontrol.
#include "tools/launch/slurm.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "tests/support/temporary_directory.h"
#include "tools/launch/process.h"

namespace octet::test {
namespace {

// A directory of programs, first in PATH for the life of the object.
class Programs {
 public:
  Programs() : before_(std::getenv("PATH")) { ::setenv("PATH", (directory_.path() + ":" + before_).c_str(), 1); }
  ~Programs() { ::setenv("PATH", before_.c_str(), 1); }
  void add(const std::string& name, const std::string& text) const {
    real_file_system().write_atomically(at(name), "#!/bin/bash\n" + text + "\n");
    REQUIRE(::chmod(at(name).c_str(), 0700) == 0);
  }
  std::string at(const std::string& name) const { return directory_ / name; }
  bool has(const std::string& name) const { return real_file_system().exists(at(name)); }
  std::string read(const std::string& name) const { return real_file_system().read_text(at(name)); }

 private:
  TemporaryDirectory directory_;
  std::string before_;
};

Finished run_script(const std::string& script) {
  ::setenv("SLURM_JOB_ID", "77", 1);
  const Finished finished = run_all({{.argv = {"/bin/bash"}, .input = script}}, 60).front();
  ::unsetenv("SLURM_JOB_ID");
  return finished;
}

}  // namespace

TEST_CASE("the script asks Slurm for the nodes, the signal and the right to be queued again", "[launch][slurm]") {
  const std::string script = sbatch_script({.name = "my run/3",
                                            .nodes = 2,
                                            .ranks_per_node = 4,
                                            .time = "1-12:00:00",
                                            .partition = "long,short",
                                            .command = {"/bin/octet", "train"}});
  for (const char* line :
       {"#!/bin/bash\n", "#SBATCH --job-name=my_run_3\n", "#SBATCH --nodes=2\n", "#SBATCH --ntasks-per-node=4\n",
        "#SBATCH --time=1-12:00:00\n", "#SBATCH --partition=long,short\n", "#SBATCH --signal=B:USR1@120\n",
        "#SBATCH --requeue\n", "srun --mpi=pmix --kill-on-bad-exit=1 /bin/octet train &\n"}) {
    CHECK_THAT(script, Catch::Contains(line));
  }
  CHECK_THAT(sbatch_script({.command = {"/bin/octet"}, .uses_srun = false}), Catch::Contains("\n/bin/octet &\n"));
  for (const char* value : {"a b", "$(id)", "x\ny", "--wrap", "'"}) {
    CAPTURE(value);
    CHECK(error_of([&] { sbatch_script({.partition = value, .command = {"x"}}); }).code() == 2);
    CHECK(error_of([&] { sbatch_script({.time = value, .command = {"x"}}); }).code() == 2);
  }
  CHECK(error_of([] { sbatch_script({.nodes = 0, .command = {"x"}}); }).code() == 2);
}

TEST_CASE("arguments come through the script as they were given", "[launch][slurm]") {
  const Programs programs;
  programs.add("srun", "shift 2\nfor word in \"$@\"; do printf '[%s]\\n' \"$word\"; done >" + programs.at("words"));
  programs.add("scontrol", "touch " + programs.at("requeued"));
  const Finished finished = run_script(sbatch_script(
      {.command = {"/a b/octet", "train", "it's.yaml", "--set", "data.path=a \"b\" $HOME `id` \\ *", "--set", "x="}}));
  INFO(finished.output);
  CHECK(finished.code == 0);
  CHECK(programs.read("words") ==
        "[/a b/octet]\n[train]\n[it's.yaml]\n[--set]\n[data.path=a \"b\" $HOME `id` \\ *]\n[--set]\n[x=]\n");
  CHECK_FALSE(programs.has("requeued"));
}

TEST_CASE("the script ends with the code of the ranks, and queues the job again for 75 only", "[launch][slurm]") {
  const int code = GENERATE(0, 3, 7, 75, 138);
  CAPTURE(code);
  const Programs programs;
  programs.add("srun", "exit " + std::to_string(code));
  programs.add("scontrol", "echo \"$@\" >" + programs.at("requeued"));
  const Finished finished = run_script(sbatch_script({.command = {"octet"}}));
  CHECK(finished.code == code);
  CHECK(programs.has("requeued") == (code == 75));
  if (code == 75) CHECK(programs.read("requeued") == "requeue 77\n");
}

TEST_CASE("a signal to the script reaches the ranks, which have time to save", "[launch][slurm]") {
  const int signal = GENERATE(SIGUSR1, SIGTERM);
  const bool is_early = GENERATE(false, true);  // before the rank has a handler
  CAPTURE(signal, is_early);
  const Programs programs;
  programs.add("srun",
               (is_early ? std::string() : "trap 'sleep 0.4; touch " + programs.at("saved") + "; exit 75' USR1\n") +
                   "touch " + programs.at("ready") + "\nfor i in {1..1000}; do sleep 0.02; done");
  programs.add("scontrol", "touch " + programs.at("requeued"));
  const pid_t pid = ::fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    real_file_system().write_atomically(programs.at("job"), sbatch_script({.command = {"octet"}}));
    ::execl("/bin/bash", "bash", programs.at("job").c_str(), nullptr);
    ::_exit(127);
  }
  while (!programs.has("ready")) ::usleep(10'000);
  ::kill(pid, signal);
  int status = 0;
  REQUIRE(::waitpid(pid, &status, 0) == pid);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 75);
  CHECK(programs.has("saved") == !is_early);
  CHECK(programs.has("requeued"));
}

TEST_CASE("a script is given to sbatch; without one, or where it refuses, that is said", "[launch][slurm]") {
  const Programs programs;
  programs.add("sbatch", "cat >" + programs.at("given") + "\necho Submitted batch job 5");
  CHECK(submit_to_slurm("the script\n") == "Submitted batch job 5\n");
  CHECK(programs.read("given") == "the script\n");
  programs.add("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1");
  const Error refused = error_of([] { submit_to_slurm("x"); });
  CHECK(refused.code() == 2);
  CHECK_THAT(refused.block(), Catch::Contains("invalid partition specified: x"));
  CHECK_THAT(error_of([] { submit_to_slurm("x", "no-such-sbatch"); }).block(),
             Catch::Contains("no-such-sbatch was not found") && Catch::Contains("login node"));
}

}  // namespace octet::test
