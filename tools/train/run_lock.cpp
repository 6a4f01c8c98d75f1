#include "tools/train/run_lock.h"

#include <fmt/chrono.h>
#include <unistd.h>

#include "core/base/error.h"

namespace octet {

RunLock::RunLock(FileSystem& fs, const std::string& run_directory, Clock& clock) {
  fs.make_directories(run_directory);
  const std::string holder = join_path(run_directory, ".lock-holder");
  lock_ = fs.try_lock(join_path(run_directory, ".lock"));
  if (lock_ == nullptr) {
    std::string who = "another process";
    try {
      who = fs.read_text(holder, 4096);
    } catch (const Error&) {  // it has taken the lock and not yet written its name
    }
    while (!who.empty() && who.back() == '\n') who.pop_back();
    fail(ErrorKind::kArgument,
         {.what = fmt::format("{} is in use by {}", run_directory, who),
          .where = run_directory,
          .why = "two runs in one directory would remove each other's checkpoints",
          .fix = "wait for that run, stop it, or give this one another directory with --out DIR"});
  }
  char host[256] = {};
  if (::gethostname(host, sizeof(host) - 1) != 0) host[0] = '?';
  fs.write_atomically(holder, fmt::format("process {} on host {}, started {:%Y-%m-%d %H:%M:%S} UTC\n", ::getpid(), host,
                                          fmt::gmtime(clock.unix_ns() / 1'000'000'000)));
}

}  // namespace octet
