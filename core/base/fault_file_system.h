// A file system in memory that fails on purpose: the nth call errs, lies or is the last one of a killed process, and a
// power loss forgets any part of what was not synced. One thread.
//
// What a power loss keeps: bytes of a file after sync of that file; names in a directory after sync_directory of that
// directory. Of everything else it keeps any subset, by seed: each 512-byte sector of each write, each creation,
// removal and renaming (a renaming wholly or not at all). A sync that failed leaves its data readable and lost, and the
// next sync of the same file succeeds without writing it, as Linux does (LWN, "PostgreSQL's fsync() surprise").
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/base/file_system.h"

namespace octet {

class FaultFileSystem final : public FileSystem {
 public:
  // Thrown by every call from the moment a process is killed or the power is lost. It is no Error: nothing may handle
  // it, as nothing runs in a process that is dead.
  struct Stopped {};

  FaultFileSystem();

  // Calls that reached the file system, and bytes that reached append. All faults count from the start of these.
  uint64_t calls() const { return calls_; }
  uint64_t appended_bytes() const { return appended_bytes_; }
  // Call number n (from 0) fails with this errno; the ones after it too where `from_then_on`. A failing append has
  // written half of its bytes.
  void fail_call(uint64_t n, int error, bool from_then_on = false);
  // Call number n reports success and does nothing, or, where it appends, leaves out its last byte.
  void lie_at_call(uint64_t n);
  // No sync has any effect; all report success.
  void ignore_syncs() { ignore_syncs_ = true; }
  // The process dies before call number n, or in the append that crosses this many bytes, with those written.
  void stop_at_call(uint64_t n);
  void stop_after_bytes(uint64_t bytes);
  void set_capacity(uint64_t bytes) { capacity_ = bytes; }
  // The process is gone and another one starts: no faults, no locks, counters at 0; everything written is there.
  void restart();
  // What is there when the power comes back. Seed 0 keeps nothing that was not synced, seed 1 everything.
  FaultFileSystem after_power_loss(uint64_t seed) const;
  // The bytes of a file, to damage them.
  std::string& content(const std::string& path);

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
  friend class FaultReadableFile;
  friend class FaultWritableFile;
  friend class FaultFileLock;

  using Id = uint64_t;
  struct Write {
    uint64_t offset = 0, bytes = 0;
  };
  struct Node {
    bool is_directory = false;
    std::string content, durable;  // now, and after a power loss that keeps nothing
    std::vector<Write> unsynced;
    std::map<std::string, Id> entries, durable_entries;
  };
  // One creation, removal or renaming: the entries it sets, id 0 for none.
  struct EntryChange {
    struct Edit {
      Id directory;
      std::string name;
      Id id;
    };
    std::vector<Edit> edits;
  };
  enum class Outcome { kDone, kLie };

  Outcome begin(const char* call, const std::string& path);
  std::optional<Id> find(const std::string& path) const;
  Id need(const char* call, const std::string& path) const;
  Id need_directory(const char* call, const std::string& path) const;
  Id add(const char* call, const std::string& path, bool is_directory);
  void change_entries(std::vector<EntryChange::Edit> edits);
  void append(Id id, const std::string& path, const void* from, uint64_t bytes);
  void sync(Id id, const std::string& path);
  uint64_t used_bytes() const;

  std::map<Id, Node> nodes_;
  std::vector<EntryChange> unsynced_changes_;
  Id next_id_ = 2;
  std::set<Id> locked_;
  uint64_t calls_ = 0, appended_bytes_ = 0;
  std::optional<uint64_t> fail_call_, lie_call_, stop_call_, stop_bytes_;
  int fail_error_ = 0;
  bool fail_from_then_on_ = false, ignore_syncs_ = false, is_stopped_ = false;
  uint64_t capacity_ = uint64_t(1) << 40;
};

}  // namespace octet
