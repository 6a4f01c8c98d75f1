// A batch script for Slurm.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace octet {

struct SlurmJob {
  std::string name = "octet";
  int64_t nodes = 1, ranks_per_node = 1;
  std::string time = {};             // as Slurm takes it: "2:00:00", "1-12"; "" is the partition's
  std::string partition = {};        // "" is the default one
  std::vector<std::string> command;  // what srun starts as every rank; or what starts all of them
  bool uses_srun = true;             // with PMIx
};

// The script: two minutes before its time is over the ranks are told to save, and a job that ended with 75 is queued
// again. Throws kArgument for a value that has no place in a line of #SBATCH.
std::string sbatch_script(const SlurmJob& job);

// Gives the script to sbatch, and returns what it says.
std::string submit_to_slurm(const std::string& script, const std::string& sbatch = "sbatch");

}  // namespace octet
