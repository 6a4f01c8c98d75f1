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
  MemoryEstimate memory;
};

// Reads the configuration (yaml_reader.h), opens both splits of its dataset, and compares vocabulary, sequence length,
// memory and disk with what is there. Throws one error that lists all that was found: of kind kConfig, or of the
// fault's own kind where it is the only one and no fault of the configuration (a damaged shard: kData; a full disk:
// kStorage).
CheckedRun check_run(FileSystem& files, const std::string& config_path, const std::vector<std::string>& overrides,
                     const std::string& run_dir);

}  // namespace octet
