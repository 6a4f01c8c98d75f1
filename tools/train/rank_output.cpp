#include "tools/train/rank_output.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "core/base/error.h"
#include "core/base/log.h"

namespace octet {

std::string RankOutput::path_of(int rank, const std::string& run_dir) {
  return join_path(join_path(run_dir, "logs"), fmt::format("rank-{:03}.log", rank));
}

RankOutput::RankOutput(int rank, const std::string& run_dir, FileSystem& files, Clock& clock) {
  const std::string path = path_of(rank, run_dir);
  try {
    files.make_directories(directory_of(path));
  } catch (const Error& error) {
    log_warning("rank {} has no log file: {}", rank, error.what());
    return;
  }
  // Not by FileSystem, whose files are for one writer of whole records: stdout and stderr need a descriptor.
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
  char host[256] = {};
  if (::gethostname(host, sizeof host - 1) != 0) host[0] = '?';
  const std::string header = fmt::format("==== {:%Y-%m-%d %H:%M:%S} UTC, rank {} on host {}, process {}\n",
                                         fmt::gmtime(clock.unix_ns() / 1'000'000'000), rank, host, ::getpid());
  if (fd < 0 || ::write(fd, header.data(), header.size()) != ssize_t(header.size())) {
    log_warning("rank {} has no log file: {}: {}", rank, path, std::strerror(errno));
    if (fd >= 0) ::close(fd);
    return;
  }
  has_file_ = true;
  if (rank == 0) {
    copy_log_to(fd);
    copy_fd_ = fd;
    return;
  }
  std::fflush(stdout);
  std::fflush(stderr);
  ::dup2(fd, STDOUT_FILENO);
  ::dup2(fd, STDERR_FILENO);
  ::close(fd);
  // By lines, so that those of both stand in the order of writing. With a buffer: without one, the C library may go on
  // by blocks where it has begun so.
  static char buffer[BUFSIZ];
  std::setvbuf(stdout, buffer, _IOLBF, sizeof buffer);
}

void RankOutput::say(std::string_view text, bool must_be_said) const {
  if (!has_file_ && !must_be_said) return;
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
  if (copy_fd_ < 0) return;
  [[maybe_unused]] const auto written = ::write(copy_fd_, text.data(), text.size());  // a disk may be full
}

}  // namespace octet
