// Everything that can be known to stop a run before it starts, found in one pass.
#pragma once

#include <string>
#include <vector>

#include "tools/data/dataset.h"
#include "tools/train/model_stats.h"
#include "tools/train/yaml_reader.h"

namespace octet {

struct CheckedRun {
  Config config;
  Origins origins;
  DatasetInfo dataset;
  int64_t vocab_size = 0;    // of the model: its own, or the tokenizer's
  uint64_t disk_bytes = 0;   // of one checkpoint, with its headers, manifest and tokenizer
  uint64_t free_bytes = 0;   // where run_dir is or would be made
  int64_t memory_bytes = 0;  // of this machine; 0 where it does not say
  int64_t rank = 0;          // the one that holds the most, of which the next two are
  MemoryEstimate memory;
  WireBytes wire;
  int64_t host_ranks = 1;  // ranks on one host: as launched, or parallel.ranks_per_node, or all
  int64_t sharing = 1;     // of them, those that share the memory that is looked at: the host's, or a GPU's
  std::string transport;   // of ranks on GPUs: "NCCL", or what else and why; empty where there are none
  bool elsewhere = false;
};

// Reads the configuration (yaml_reader.h), opens both splits of its dataset, and compares vocabulary, sequence length,
// memory and disk with what is there. Throws one error that lists all that was found: of kind kConfig, or of the
// fault's own kind where it is the only one and no fault of the configuration (a damaged shard: kData; a full disk:
// kStorage). elsewhere: the run is for other hosts, and what this one has of data, memory and disk does not matter.
CheckedRun check_run(FileSystem& files, const std::string& config_path, const std::vector<std::string>& overrides,
                     const std::string& run_dir, bool elsewhere = false);

}  // namespace octet
