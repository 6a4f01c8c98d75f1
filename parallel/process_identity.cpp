#include "parallel/process_identity.h"

#include <fcntl.h>
#include <unistd.h>

#include <charconv>
#include <cstring>
#include <string_view>

namespace octet {
namespace {

// A file of /proc, empty where it cannot be read. Not by FileSystem, which opens regular files of known size only.
std::string read_proc(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {};
  char text[1024];
  const ssize_t bytes = ::read(fd, text, sizeof text);
  ::close(fd);
  return bytes > 0 ? std::string(text, size_t(bytes)) : std::string();
}

struct Stat {
  char state = '?';
  uint64_t start_ticks = 0;
};

// proc(5), /proc/pid/stat: field 2 is the name in parentheses, which may hold any character; 3 is the state and 22 the
// start time.
Stat read_stat(int64_t pid) {
  const std::string text = read_proc("/proc/" + std::to_string(pid) + "/stat");
  const size_t name_end = text.rfind(')');
  Stat stat;
  if (name_end == std::string::npos || name_end + 2 >= text.size()) return stat;
  std::string_view rest = std::string_view(text).substr(name_end + 2);
  stat.state = rest[0];
  for (int field = 3; field < 22; ++field) {
    const size_t space = rest.find(' ');
    if (space == std::string_view::npos) return stat;
    rest.remove_prefix(space + 1);
  }
  std::from_chars(rest.data(), rest.data() + rest.size(), stat.start_ticks);
  return stat;
}

std::string machine() {
  char pid_namespace[64] = {};
  const ssize_t bytes = ::readlink("/proc/self/ns/pid", pid_namespace, sizeof pid_namespace - 1);
  const std::string boot = read_proc("/proc/sys/kernel/random/boot_id");
  if (bytes <= 0 || boot.size() < 36) return {};
  return boot.substr(0, 36) + pid_namespace;
}

}  // namespace

ProcessIdentity this_process() {
  ProcessIdentity process;
  ::gethostname(process.host, sizeof process.host - 1);
  std::strncpy(process.machine, machine().c_str(), sizeof process.machine - 1);
  process.pid = ::getpid();
  process.start_ticks = read_stat(process.pid).start_ticks;
  return process;
}

PeerState state_of(const ProcessIdentity& process) {
  const std::string here = machine();
  if (here.empty() || here.compare(0, sizeof process.machine - 1, process.machine) != 0 || process.start_ticks == 0) {
    return PeerState::kUnknown;
  }
  const Stat stat = read_stat(process.pid);
  if (stat.start_ticks != process.start_ticks) return PeerState::kGone;
  switch (stat.state) {
    case 'T':
    case 't':
      return PeerState::kStopped;
    case 'Z':
    case 'X':
      return PeerState::kGone;
    default:
      return PeerState::kRunning;
  }
}

}  // namespace octet
