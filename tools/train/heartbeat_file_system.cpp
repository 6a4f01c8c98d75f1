#include "tools/train/heartbeat_file_system.h"

#include <algorithm>

namespace octet {
namespace {

// Before the call too: what this rank computed since the last one took time of its own.
template <class Call>
auto alive(Communicator& world, Call&& call) {
  world.progress();
  if constexpr (std::is_void_v<decltype(call())>) {
    call();
    world.progress();
  } else {
    auto result = call();
    world.progress();
    return result;
  }
}

class Readable final : public ReadableFile {
 public:
  Readable(std::unique_ptr<ReadableFile> file, Communicator& world) : file_(std::move(file)), world_(world) {}
  uint64_t size() const override { return file_->size(); }
  void read_at(uint64_t offset, void* to, uint64_t bytes) const override {
    for (uint64_t done = 0; done < bytes;) {
      const uint64_t count = std::min(bytes - done, HeartbeatFileSystem::kBytesAtOnce);
      alive(world_, [&] { file_->read_at(offset + done, static_cast<char*>(to) + done, count); });
      done += count;
    }
  }

 private:
  std::unique_ptr<ReadableFile> file_;
  Communicator& world_;
};

class Writable final : public WritableFile {
 public:
  Writable(std::unique_ptr<WritableFile> file, Communicator& world) : file_(std::move(file)), world_(world) {}
  void append(const void* from, uint64_t bytes) override {
    for (uint64_t done = 0; done < bytes;) {
      const uint64_t count = std::min(bytes - done, HeartbeatFileSystem::kBytesAtOnce);
      alive(world_, [&] { file_->append(static_cast<const char*>(from) + done, count); });
      done += count;
      unsynced_ += count;
      if (unsynced_ >= HeartbeatFileSystem::kBytesPerSync) sync();
    }
  }
  void sync() override {
    alive(world_, [&] { file_->sync(); });
    unsynced_ = 0;
  }

 private:
  std::unique_ptr<WritableFile> file_;
  Communicator& world_;
  uint64_t unsynced_ = 0;
};

}  // namespace

std::unique_ptr<ReadableFile> HeartbeatFileSystem::open(const std::string& path) {
  return std::make_unique<Readable>(alive(world_, [&] { return inner_.open(path); }), world_);
}
std::unique_ptr<WritableFile> HeartbeatFileSystem::create(const std::string& path) {
  return std::make_unique<Writable>(alive(world_, [&] { return inner_.create(path); }), world_);
}
std::unique_ptr<WritableFile> HeartbeatFileSystem::append_to(const std::string& path) {
  return std::make_unique<Writable>(alive(world_, [&] { return inner_.append_to(path); }), world_);
}
bool HeartbeatFileSystem::exists(const std::string& path) {
  return alive(world_, [&] { return inner_.exists(path); });
}
FileInfo HeartbeatFileSystem::info(const std::string& path) {
  return alive(world_, [&] { return inner_.info(path); });
}
std::vector<std::string> HeartbeatFileSystem::list(const std::string& directory) {
  return alive(world_, [&] { return inner_.list(directory); });
}
void HeartbeatFileSystem::make_directory(const std::string& path) {
  alive(world_, [&] { inner_.make_directory(path); });
}
void HeartbeatFileSystem::make_directories(const std::string& path) {
  alive(world_, [&] { inner_.make_directories(path); });
}
void HeartbeatFileSystem::rename(const std::string& from, const std::string& to) {
  alive(world_, [&] { inner_.rename(from, to); });
}
void HeartbeatFileSystem::remove_file(const std::string& path) {
  alive(world_, [&] { inner_.remove_file(path); });
}
void HeartbeatFileSystem::remove_tree(const std::string& path) {
  alive(world_, [&] { inner_.remove_tree(path); });
}
void HeartbeatFileSystem::sync_directory(const std::string& path) {
  alive(world_, [&] { inner_.sync_directory(path); });
}
uint64_t HeartbeatFileSystem::free_bytes(const std::string& path) {
  return alive(world_, [&] { return inner_.free_bytes(path); });
}
std::unique_ptr<FileLock> HeartbeatFileSystem::try_lock(const std::string& path) {
  return alive(world_, [&] { return inner_.try_lock(path); });
}

}  // namespace octet
