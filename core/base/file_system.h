// Files, behind an interface, so that the same code runs on a real disk and on one that fails, tears and forgets.
// Every call throws Error(kStorage) with the path and the system's reason; data is read by pread, never mapped.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace octet {

class ReadableFile {
 public:
  virtual ~ReadableFile() = default;
  virtual uint64_t size() const = 0;
  // Fills exactly `bytes` bytes from `offset`; throws where the file ends before.
  virtual void read_at(uint64_t offset, void* to, uint64_t bytes) const = 0;
};

class WritableFile {
 public:
  virtual ~WritableFile() = default;  // closes; what was not synced may be lost
  virtual void append(const void* from, uint64_t bytes) = 0;
  // Returns when the content is on the disk.
  virtual void sync() = 0;
};

// Held until it is destroyed or the process ends, however it ends.
class FileLock {
 public:
  virtual ~FileLock() = default;
};

struct FileInfo {
  bool is_directory = false;
  bool is_regular = false;  // false for links, pipes and devices
  uint64_t size = 0;
  int64_t modified_ns = 0;  // wall clock; a hint for people, never for a decision
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;
  // Opens a regular file; symbolic links, pipes and devices are refused without blocking.
  virtual std::unique_ptr<ReadableFile> open(const std::string& path) = 0;
  // Creates a file that must not exist, for its owner only (0600).
  virtual std::unique_ptr<WritableFile> create(const std::string& path) = 0;
  // Opens for appending; creates where there is none.
  virtual std::unique_ptr<WritableFile> append_to(const std::string& path) = 0;
  virtual bool exists(const std::string& path) = 0;
  virtual FileInfo info(const std::string& path) = 0;                       // does not follow a link
  virtual std::vector<std::string> list(const std::string& directory) = 0;  // names, sorted; not "." and ".."
  virtual void make_directory(const std::string& path) = 0;                 // its parent must exist; 0700
  // As mkdir -p; what it made stays after a power loss.
  virtual void make_directories(const std::string& path) = 0;
  virtual void rename(const std::string& from, const std::string& to) = 0;
  virtual void remove_file(const std::string& path) = 0;
  virtual void remove_tree(const std::string& path) = 0;  // links are removed, not followed; absence is no error
  // Returns when the directory's entries are on the disk.
  virtual void sync_directory(const std::string& path) = 0;
  virtual uint64_t free_bytes(const std::string& path) = 0;
  // Locks a file, made where there is none, against every other lock of it; null where another holds it.
  virtual std::unique_ptr<FileLock> try_lock(const std::string& path) = 0;

  std::string read_text(const std::string& path, uint64_t limit_bytes = uint64_t(1) << 30);
  // Writes a temporary file beside `path`, syncs it and renames it: a reader sees the old or the new content, whole.
  void write_atomically(const std::string& path, std::string_view content);
};

// The disk of this machine.
FileSystem& real_file_system();

// "a/b" from "a" and "b"; the last component; everything before it ("." where there is none).
std::string join_path(std::string_view directory, std::string_view name);
std::string file_name_of(std::string_view path);
std::string directory_of(std::string_view path);

}  // namespace octet
