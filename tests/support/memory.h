// The most memory that this process has held so far.
#pragma once

#include <sys/resource.h>

#include <cstdint>

namespace octet::test {

inline uint64_t peak_memory_bytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return uint64_t(usage.ru_maxrss) * 1024;
}

}  // namespace octet::test
