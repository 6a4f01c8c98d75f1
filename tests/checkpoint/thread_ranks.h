// Ranks that are threads and share a disk: each sees one FaultFileSystem through a view of its own, whose calls fail,
// or are the last of its rank, without those of the other ranks.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "core/base/fault_file_system.h"
#include "core/base/posix_io.h"
#include "parallel/local_communicator.h"
#include "tests/parallel/outcomes.h"

namespace octet::test {

struct SharedDisk {
  FaultFileSystem fs;
  std::mutex mutex{};
};

class RankFileSystem final : public FileSystem {
  template <class Call>
  auto call(const char* name, const std::string& path, Call&& body) {
    if (stop_call_ && calls_ >= *stop_call_) throw FaultFileSystem::Stopped{};
    const uint64_t n = calls_++;
    if (!slow_part_.empty() && path.find(slow_part_) != std::string::npos) std::this_thread::sleep_for(delay_);
    if (fail_call_ && (n == *fail_call_ || (fails_on_ && n > *fail_call_))) fail_storage(name, path, error_);
    const std::lock_guard lock(disk_.mutex);
    return body();
  }

 public:
  explicit RankFileSystem(SharedDisk& disk) : disk_(disk) {}

  uint64_t calls() const { return calls_; }
  // Call number n (from 0) of this rank fails with this errno, those after it too where `from_then_on`.
  void fail_call(uint64_t n, int error, bool from_then_on) { fail_call_ = n, error_ = error, fails_on_ = from_then_on; }
  void stop_at_call(uint64_t n) { stop_call_ = n; }
  // Each call of a path that holds `part` takes so long.
  void slow_down(std::string part, std::chrono::milliseconds delay) { slow_part_ = std::move(part), delay_ = delay; }
  // Files that this rank has opened to read, and that it has made.
  const std::set<std::string>& opened() const { return opened_; }
  const std::set<std::string>& created() const { return created_; }

  std::unique_ptr<ReadableFile> open(const std::string& path) override {
    opened_.insert(path);
    return std::make_unique<Readable>(*this, path, call("open", path, [&] { return disk_.fs.open(path); }));
  }
  std::unique_ptr<WritableFile> create(const std::string& path) override {
    created_.insert(path);
    return std::make_unique<Writable>(*this, path, call("create", path, [&] { return disk_.fs.create(path); }));
  }
  std::unique_ptr<WritableFile> append_to(const std::string& path) override {
    return std::make_unique<Writable>(*this, path, call("open", path, [&] { return disk_.fs.append_to(path); }));
  }
  bool exists(const std::string& path) override {
    return call("look at", path, [&] { return disk_.fs.exists(path); });
  }
  FileInfo info(const std::string& path) override {
    return call("look at", path, [&] { return disk_.fs.info(path); });
  }
  std::vector<std::string> list(const std::string& path) override {
    return call("list", path, [&] { return disk_.fs.list(path); });
  }
  void make_directory(const std::string& path) override {
    call("make", path, [&] { disk_.fs.make_directory(path); });
  }
  void make_directories(const std::string& path) override {
    call("make", path, [&] { disk_.fs.make_directories(path); });
  }
  void rename(const std::string& from, const std::string& to) override {
    call("rename", from, [&] { disk_.fs.rename(from, to); });
  }
  void remove_file(const std::string& path) override {
    call("remove", path, [&] { disk_.fs.remove_file(path); });
  }
  void remove_tree(const std::string& path) override {
    call("remove", path, [&] { disk_.fs.remove_tree(path); });
  }
  void sync_directory(const std::string& path) override {
    call("sync", path, [&] { disk_.fs.sync_directory(path); });
  }
  uint64_t free_bytes(const std::string& path) override {
    return call("look at", path, [&] { return disk_.fs.free_bytes(path); });
  }
  std::unique_ptr<FileLock> try_lock(const std::string& path) override {
    return call("lock", path, [&] { return disk_.fs.try_lock(path); });
  }

 private:
  class Readable final : public ReadableFile {
   public:
    Readable(RankFileSystem& fs, std::string path, std::unique_ptr<ReadableFile> file)
        : fs_(fs), path_(std::move(path)), file_(std::move(file)) {}
    uint64_t size() const override {
      const std::lock_guard lock(fs_.disk_.mutex);
      return file_->size();
    }
    void read_at(uint64_t offset, void* to, uint64_t bytes) const override {
      fs_.call("read", path_, [&] { file_->read_at(offset, to, bytes); });
    }

   private:
    RankFileSystem& fs_;
    std::string path_;
    std::unique_ptr<ReadableFile> file_;
  };
  class Writable final : public WritableFile {
   public:
    Writable(RankFileSystem& fs, std::string path, std::unique_ptr<WritableFile> file)
        : fs_(fs), path_(std::move(path)), file_(std::move(file)) {}
    void append(const void* from, uint64_t bytes) override {
      fs_.call("write", path_, [&] { file_->append(from, bytes); });
    }
    void sync() override {
      fs_.call("sync", path_, [&] { file_->sync(); });
    }

   private:
    RankFileSystem& fs_;
    std::string path_;
    std::unique_ptr<WritableFile> file_;
  };

  SharedDisk& disk_;
  std::set<std::string> opened_, created_;
  uint64_t calls_ = 0;
  std::optional<uint64_t> fail_call_, stop_call_;
  int error_ = 0;
  bool fails_on_ = false;
  std::string slow_part_;
  std::chrono::milliseconds delay_{0};
};

// Catch's assertions are for one thread: bodies throw.
inline void run_fine(int ranks, const std::function<void(Communicator&)>& body) {
  rethrow_first(run_local_ranks(ranks, {}, body));
}

}  // namespace octet::test
