// One writer to the terminal: rank 0. Every rank has a file, <run directory>/logs/rank-000.log and so on, to which
// each start appends, after a line that says when and by which process.
#pragma once

#include <string>
#include <string_view>

#include "core/base/clock.h"
#include "core/base/file_system.h"

namespace octet {

// When all ranks have come to the end, rank 0 tells octet launch their code, in a line of stderr that begins so. The
// code of mpirun may be another: it happens that it sees the end of a rank's connection before that of the process, and
// then it knows none.
inline constexpr std::string_view kEndedWithCode = "octet: the ranks ended with code ";

class RankOutput {
 public:
  // From now on, and until the process ends, what this process writes to stdout and stderr goes to the file of its
  // rank. Rank 0 keeps both, and its log lines (core/base/log.h) go to its file as well. Makes the directory where it
  // is missing. A file that cannot be opened costs a warning: the rank then writes where it wrote before.
  RankOutput(int rank, const std::string& run_dir, FileSystem& files = real_file_system(), Clock& clock = real_clock());

  // Writes to the file and, on rank 0, to the terminal. Where there is no file: to the terminal, if it must be said.
  void say(std::string_view text, bool must_be_said) const;

  static std::string path_of(int rank, const std::string& run_dir);

 private:
  bool has_file_ = false;
  int copy_fd_ = -1;  // of rank 0: its file
};

}  // namespace octet
