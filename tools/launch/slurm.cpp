#include "tools/launch/slurm.h"

#include "core/base/error.h"
#include "tools/launch/process.h"
#include "tools/launch/shell.h"

namespace octet {
namespace {

// sbatch has quoting rules of its own for these lines; a value that needs none is read as it stands.
void check_value(const char* option, const std::string& value) {
  constexpr const char* kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.,:-";
  if (value.find_first_not_of(kPlain) == std::string::npos && !value.starts_with('-')) return;
  fail(ErrorKind::kArgument, {.what = fmt::format("{} is \"{}\"; wanted letters, digits and . , : _ -", option, value),
                              .where = option,
                              .why = "it is written into a line of the batch script",
                              .fix = "write it as sbatch takes it: --time 12:00:00, --partition long"});
}

std::string job_name(const std::string& name) {
  std::string plain;
  for (const char c : name) {
    plain += std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' || c == '.' ? c : '_';
  }
  return plain.empty() || plain[0] == '-' ? "octet" : plain;
}

}  // namespace

std::string sbatch_script(const SlurmJob& job) {
  require(job.nodes >= 1 && job.ranks_per_node >= 1, "launch: {} nodes of {} ranks; wanted 1 or more of both",
          job.nodes, job.ranks_per_node);
  check_value("--time", job.time);
  check_value("--partition", job.partition);
  std::string text = "#!/bin/bash\n";
  const auto option = [&text](const std::string& line) { text += "#SBATCH " + line + "\n"; };
  option("--job-name=" + job_name(job.name));
  option(fmt::format("--nodes={}", job.nodes));
  option(fmt::format("--ntasks-per-node={}", job.ranks_per_node));
  if (!job.time.empty()) option("--time=" + job.time);
  if (!job.partition.empty()) option("--partition=" + job.partition);
  option("--signal=B:USR1@120");
  option("--requeue");
  option("--open-mode=append");
  text += fmt::format(
      "# SIGUSR1 comes two minutes before the time is over, SIGTERM with scancel --batch or preemption: the ranks save "
      "and\n"
      "# end with 75, and the job is queued again.\n"
      "is_told=\n"
      "tell() {{ is_told=1; kill -USR1 \"$ranks\"; }}\n"
      "trap tell USR1 TERM\n"
      "{}{} &\n"
      "ranks=$!\n"
      "while :; do\n"
      "  wait \"$ranks\"\n"
      "  code=$?\n"
      "  kill -0 \"$ranks\" 2>/dev/null || break\n"
      "done\n"
      "wait \"$ranks\"  # once more: a signal may have ended the wait above after the ranks had ended\n"
      "code=$?\n"
      "# A rank that was told before it had come to where it saves has ended by the signal.\n"
      "if [ -n \"$is_told\" ] && [ \"$code\" = 138 ]; then code=75; fi\n"
      "if [ \"$code\" = 75 ]; then scontrol requeue \"$SLURM_JOB_ID\"; fi\n"
      "exit \"$code\"\n",
      job.uses_srun ? "srun --mpi=pmix --kill-on-bad-exit=1 " : "", shell_line(job.command));
  return text;
}

std::string submit_to_slurm(const std::string& script, const std::string& sbatch) {
  const std::string path = find_program(sbatch);
  if (path.empty()) {
    fail(ErrorKind::kArgument,
         {.what = fmt::format("{} was not found", sbatch),
          .where = "PATH",
          .why = "jobs are given to Slurm by it",
          .fix = "run this on a login node of the cluster; without --submit the script is printed"});
  }
  const Finished finished = run_all({{.argv = {path}, .input = script}}, 60).front();
  if (finished.code != 0 || finished.is_late) {
    fail(ErrorKind::kArgument,
         {.what = finished.is_late ? "sbatch has not answered for 60 s"
                                   : fmt::format("sbatch refused the job with code {}", finished.code),
          .where = path,
          .why = finished.output.substr(0, finished.output.find('\n')),
          .fix = "without --submit the script is printed, to be changed and submitted by hand"});
  }
  return finished.output;
}

}  // namespace octet
