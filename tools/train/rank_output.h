// One writer to the terminal: rank 0. Every rank has a file, <run directory>/logs/rank-000.log and so on, to which
// each start appends, after a line that says when and by which process.
#pragma once

#include <string>

#include "core/base/clock.h"
#include "core/base/file_system.h"

namespace octet {

class RankOutput {
 public:
  // From now on, and until the process ends, what this process writes to stdout and stderr goes to the file of its
  // rank. Rank 0 keeps both, and its log lines (core/base/log.h) go to its file as well. Makes the directory where it
  // is missing. A file that cannot be opened costs a warning: the rank then writes where it wrote before.
  RankOutput(int rank, const std::string& run_dir, FileSystem& files = real_file_system(), Clock& clock = real_clock());

  static std::string path_of(int rank, const std::string& run_dir);
};

}  // namespace octet
