// A file system whose every call tells the other ranks that this one gets on: what one rank does alone, as rank 0 that
// writes the report, may take longer than parallel.timeout_s on a slow disk, and is no hang as long as calls return.
#pragma once

#include "core/base/file_system.h"
#include "parallel/communicator.h"

namespace octet {

class HeartbeatFileSystem final : public FileSystem {
 public:
  // A call that moves more goes to the disk in pieces of this size.
  static constexpr uint64_t kBytesAtOnce = uint64_t(1) << 20;
  // So much of a new file is put on the disk before more is written: the last sync then has little left to wait for.
  static constexpr uint64_t kBytesPerSync = uint64_t(64) << 20;

  // Both outlive this, and the files that it opens do not.
  HeartbeatFileSystem(FileSystem& inner, Communicator& world) : inner_(inner), world_(world) {}

  std::unique_ptr<ReadableFile> open(const std::string& path) override;
  std::unique_ptr<WritableFile> create(const std::string& path) override;
  std::unique_ptr<WritableFile> append_to(const std::string& path) override;
  bool exists(const std::string& path) override;
  FileInfo info(const std::string& path) override;
  std::vector<std::string> list(const std::string& directory) override;
  void make_directory(const std::string& path) override;
  void make_directories(const std::string& path) override;
  void rename(const std::string& from, const std::string& to) override;
  void remove_file(const std::string& path) override;
  void remove_tree(const std::string& path) override;
  void sync_directory(const std::string& path) override;
  uint64_t free_bytes(const std::string& path) override;
  std::unique_ptr<FileLock> try_lock(const std::string& path) override;

 private:
  FileSystem& inner_;
  Communicator& world_;
};

}  // namespace octet
