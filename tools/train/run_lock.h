// One run per directory. The lock ends with the process, however that ends, so that a killed run never stands in the
// way.
#pragma once

#include <memory>
#include <string>

#include "core/base/clock.h"
#include "core/base/file_system.h"

namespace octet {

class RunLock {
 public:
  // Throws kArgument with the holder's host, process and start time where another run holds the directory.
  RunLock(FileSystem& fs, const std::string& run_directory, Clock& clock = real_clock());

 private:
  std::unique_ptr<FileLock> lock_;
};

}  // namespace octet
