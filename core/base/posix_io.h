// What implementations of FileSystem share: the words for an errno, and a loop around read and write calls that may be
// interrupted or do part of the work. The call is an argument, so that a test can interrupt and shorten it at will.
#pragma once

#include <cerrno>
#include <cstdint>
#include <string>

namespace octet {

// Throws Error(kStorage) "cannot CALL PATH: reason", with what to do about this errno.
[[noreturn]] void fail_storage(const char* call, const std::string& path, int error);

// Linux moves at most 2^31 - 4096 bytes in one call.
inline constexpr uint64_t kMaxTransferBytes = uint64_t(1) << 30;

struct Transfer {
  uint64_t bytes = 0;  // moved
  int error = 0;       // the errno that stopped it; 0 with too few bytes is an end of file, or a write of nothing
};

// call(done, wanted) moves up to `wanted` bytes that follow the first `done` and returns their number, or -1 with
// errno. Repeats until all is moved, an error other than EINTR comes, or a call moves nothing.
template <class Call>
Transfer transfer_fully(uint64_t bytes, Call&& call) {
  Transfer transfer;
  while (transfer.bytes < bytes) {
    const uint64_t left = bytes - transfer.bytes;
    const int64_t moved = call(transfer.bytes, left < kMaxTransferBytes ? left : kMaxTransferBytes);
    if (moved < 0) {
      if (errno == EINTR) continue;
      transfer.error = errno;
      break;
    }
    if (moved == 0) break;
    transfer.bytes += uint64_t(moved);
  }
  return transfer;
}

}  // namespace octet
