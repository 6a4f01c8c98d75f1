#include "core/base/fault_file_system.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "core/base/error.h"
#include "core/base/posix_io.h"
#include "core/base/random.h"

namespace octet {
namespace {

constexpr uint64_t kRoot = 1;
constexpr uint64_t kSectorBytes = 512;

std::vector<std::string> components_of(const std::string& path) {
  std::vector<std::string> components;
  size_t at = 0;
  while (at < path.size()) {
    const size_t end = std::min(path.find('/', at), path.size());
    const std::string name = path.substr(at, end - at);
    if (!name.empty() && name != ".") components.push_back(name);
    at = end + 1;
  }
  return components;
}

void write_over(std::string& content, uint64_t offset, std::string_view bytes) {
  if (content.size() < offset + bytes.size()) content.resize(offset + bytes.size(), '\0');
  std::copy(bytes.begin(), bytes.end(), content.begin() + int64_t(offset));
}

}  // namespace

class FaultReadableFile final : public ReadableFile {
 public:
  FaultReadableFile(FaultFileSystem* fs, FaultFileSystem::Id id, std::string path)
      : fs_(fs), id_(id), path_(std::move(path)) {}
  uint64_t size() const override { return fs_->nodes_.at(id_).content.size(); }
  void read_at(uint64_t offset, void* to, uint64_t bytes) const override {
    fs_->begin("read", path_);
    const std::string& content = fs_->nodes_.at(id_).content;
    if (offset > content.size() || bytes > content.size() - offset) {
      fail(ErrorKind::kStorage,
           {.what = fmt::format("cannot read {}: it ends after byte {}; wanted {} bytes from byte {}", path_,
                                content.size(), bytes, offset),
            .where = path_,
            .why = "",
            .fix = "write the file again"});
    }
    if (bytes > 0) std::memcpy(to, content.data() + offset, bytes);
  }

 private:
  FaultFileSystem* fs_;
  FaultFileSystem::Id id_;
  std::string path_;
};

class FaultWritableFile final : public WritableFile {
 public:
  FaultWritableFile(FaultFileSystem* fs, FaultFileSystem::Id id, std::string path)
      : fs_(fs), id_(id), path_(std::move(path)) {}
  void append(const void* from, uint64_t bytes) override { fs_->append(id_, path_, from, bytes); }
  void sync() override { fs_->sync(id_, path_); }

 private:
  FaultFileSystem* fs_;
  FaultFileSystem::Id id_;
  std::string path_;
};

class FaultFileLock final : public FileLock {
 public:
  FaultFileLock(FaultFileSystem* fs, FaultFileSystem::Id id) : fs_(fs), id_(id) {}
  ~FaultFileLock() override { fs_->locked_.erase(id_); }

 private:
  FaultFileSystem* fs_;
  FaultFileSystem::Id id_;
};

FaultFileSystem::FaultFileSystem() { nodes_[kRoot].is_directory = true; }

void FaultFileSystem::fail_call(uint64_t n, int error, bool from_then_on) {
  fail_call_ = n, fail_error_ = error, fail_from_then_on_ = from_then_on;
}
void FaultFileSystem::lie_at_call(uint64_t n) { lie_call_ = n; }
void FaultFileSystem::stop_at_call(uint64_t n) { stop_call_ = n; }
void FaultFileSystem::stop_after_bytes(uint64_t bytes) { stop_bytes_ = bytes; }

void FaultFileSystem::restart() {
  fail_call_.reset(), lie_call_.reset(), stop_call_.reset(), stop_bytes_.reset();
  is_stopped_ = ignore_syncs_ = fail_from_then_on_ = false;
  calls_ = appended_bytes_ = 0;
  locked_.clear();
}

FaultFileSystem FaultFileSystem::after_power_loss(uint64_t seed) const {
  const RandomStream random(seed, "power loss");
  uint64_t drawn = 0;
  const float kept_share = std::array{0.1f, 0.5f, 0.9f}[seed % 3];
  const auto is_kept = [&] { return seed > 1 ? random.uniform(drawn++) < kept_share : seed == 1; };
  FaultFileSystem after;
  after.nodes_ = nodes_;
  after.next_id_ = next_id_;
  after.capacity_ = capacity_;
  for (auto& [id, node] : after.nodes_) {
    std::string survived = node.durable;
    for (const Write& write : node.unsynced) {
      uint64_t at = write.offset;
      const uint64_t end = write.offset + write.bytes;
      while (at < end) {
        const uint64_t sector_end = std::min(end, (at / kSectorBytes + 1) * kSectorBytes);
        if (is_kept()) write_over(survived, at, std::string_view(node.content).substr(at, sector_end - at));
        at = sector_end;
      }
    }
    // The new length may be kept without the bytes, which then read as zeros.
    if (survived.size() < node.content.size() && is_kept()) survived.resize(node.content.size(), '\0');
    node.content = node.durable = survived;
    node.unsynced.clear();
    node.entries = node.durable_entries;
  }
  for (const EntryChange& change : unsynced_changes_) {
    if (!is_kept()) continue;
    for (const auto& edit : change.edits) {
      auto& entries = after.nodes_.at(edit.directory).entries;
      if (edit.id == 0) {
        entries.erase(edit.name);
      } else {
        entries[edit.name] = edit.id;
      }
    }
  }
  for (auto& [id, node] : after.nodes_) node.durable_entries = node.entries;
  return after;
}

std::string& FaultFileSystem::content(const std::string& path) { return nodes_.at(need("damage", path)).content; }

FaultFileSystem::Outcome FaultFileSystem::begin(const char* call, const std::string& path) {
  if (is_stopped_ || (stop_call_ && calls_ >= *stop_call_)) {
    is_stopped_ = true;
    throw Stopped{};
  }
  const uint64_t n = calls_++;
  if (fail_call_ && (n == *fail_call_ || (fail_from_then_on_ && n > *fail_call_))) {
    fail_storage(call, path, fail_error_);
  }
  return lie_call_ && n == *lie_call_ ? Outcome::kLie : Outcome::kDone;
}

std::optional<FaultFileSystem::Id> FaultFileSystem::find(const std::string& path) const {
  Id id = kRoot;
  for (const std::string& name : components_of(path)) {
    const Node& node = nodes_.at(id);
    const auto entry = node.entries.find(name);
    if (!node.is_directory || entry == node.entries.end()) return std::nullopt;
    id = entry->second;
  }
  return id;
}

FaultFileSystem::Id FaultFileSystem::need(const char* call, const std::string& path) const {
  const auto id = find(path);
  if (!id) fail_storage(call, path, ENOENT);
  return *id;
}

FaultFileSystem::Id FaultFileSystem::need_directory(const char* call, const std::string& path) const {
  const Id id = need(call, path);
  if (!nodes_.at(id).is_directory) fail_storage(call, path, ENOTDIR);
  return id;
}

FaultFileSystem::Id FaultFileSystem::add(const char* call, const std::string& path, bool is_directory) {
  const Id parent = need_directory(call, directory_of(path));
  if (find(path)) fail_storage(call, path, EEXIST);
  const Id id = next_id_++;
  nodes_[id].is_directory = is_directory;
  change_entries({{parent, file_name_of(path), id}});
  return id;
}

void FaultFileSystem::change_entries(std::vector<EntryChange::Edit> edits) {
  for (const auto& edit : edits) {
    auto& entries = nodes_.at(edit.directory).entries;
    if (edit.id == 0) {
      entries.erase(edit.name);
    } else {
      entries[edit.name] = edit.id;
    }
  }
  unsynced_changes_.push_back({std::move(edits)});
}

void FaultFileSystem::append(Id id, const std::string& path, const void* from, uint64_t bytes) {
  Node& node = nodes_.at(id);
  const auto write = [&](uint64_t count) {
    if (count == 0) return;
    node.unsynced.push_back({node.content.size(), count});
    node.content.append(static_cast<const char*>(from), count);
  };
  Outcome outcome = Outcome::kDone;
  try {
    outcome = begin("write", path);
  } catch (const Error&) {
    write(bytes / 2);
    throw;
  }
  if (stop_bytes_ && appended_bytes_ + bytes >= *stop_bytes_) {
    write(*stop_bytes_ - appended_bytes_);
    is_stopped_ = true;
    throw Stopped{};
  }
  appended_bytes_ += bytes;
  const uint64_t used = used_bytes(), left = used < capacity_ ? capacity_ - used : 0;
  if (bytes > left) {
    write(left);
    fail_storage("write", path, ENOSPC);
  }
  write(outcome == Outcome::kLie && bytes > 0 ? bytes - 1 : bytes);
}

void FaultFileSystem::sync(Id id, const std::string& path) {
  Node& node = nodes_.at(id);
  Outcome outcome = Outcome::kDone;
  try {
    outcome = begin("sync", path);
  } catch (const Error&) {
    node.unsynced.clear();
    throw;
  }
  if (outcome == Outcome::kLie || ignore_syncs_) return;
  for (const Write& write : node.unsynced) {
    write_over(node.durable, write.offset, std::string_view(node.content).substr(write.offset, write.bytes));
  }
  node.unsynced.clear();
}

uint64_t FaultFileSystem::used_bytes() const {
  uint64_t used = 0;
  for (const auto& [id, node] : nodes_) used += node.content.size();
  return used;
}

std::unique_ptr<ReadableFile> FaultFileSystem::open(const std::string& path) {
  begin("open", path);
  const Id id = need("open", path);
  if (nodes_.at(id).is_directory) fail_storage("open", path, EISDIR);
  return std::make_unique<FaultReadableFile>(this, id, path);
}

std::unique_ptr<WritableFile> FaultFileSystem::create(const std::string& path) {
  begin("create", path);
  return std::make_unique<FaultWritableFile>(this, add("create", path, false), path);
}

std::unique_ptr<WritableFile> FaultFileSystem::append_to(const std::string& path) {
  begin("open for appending", path);
  const auto found = find(path);
  const Id id = found ? *found : add("open for appending", path, false);
  if (nodes_.at(id).is_directory) fail_storage("open for appending", path, EISDIR);
  return std::make_unique<FaultWritableFile>(this, id, path);
}

bool FaultFileSystem::exists(const std::string& path) {
  begin("look at", path);
  return find(path).has_value();
}

FileInfo FaultFileSystem::info(const std::string& path) {
  begin("look at", path);
  const Node& node = nodes_.at(need("look at", path));
  return {.is_directory = node.is_directory,
          .is_regular = !node.is_directory,
          .size = node.content.size(),
          .modified_ns = 0};
}

std::vector<std::string> FaultFileSystem::list(const std::string& directory) {
  begin("list", directory);
  std::vector<std::string> names;
  for (const auto& [name, id] : nodes_.at(need_directory("list", directory)).entries) names.push_back(name);
  return names;
}

void FaultFileSystem::make_directory(const std::string& path) {
  if (begin("create directory", path) == Outcome::kLie) return;
  add("create directory", path, true);
}

void FaultFileSystem::make_directories(const std::string& path) {
  const auto found = find(path);
  if (found) {
    if (!nodes_.at(*found).is_directory) fail_storage("create directory", path, ENOTDIR);
    return;
  }
  make_directories(directory_of(path));
  make_directory(path);
  sync_directory(directory_of(path));
}

void FaultFileSystem::rename(const std::string& from, const std::string& to) {
  if (begin("rename", from) == Outcome::kLie) return;
  const Id id = need("rename", from), to_parent = need_directory("rename", directory_of(to));
  if (const auto target = find(to)) {
    const Node& node = nodes_.at(*target);
    if (node.is_directory != nodes_.at(id).is_directory) {
      fail_storage("rename", from, node.is_directory ? EISDIR : ENOTDIR);
    }
    if (!node.entries.empty()) fail_storage("rename", from, ENOTEMPTY);
  }
  change_entries({{need("rename", directory_of(from)), file_name_of(from), 0}, {to_parent, file_name_of(to), id}});
}

void FaultFileSystem::remove_file(const std::string& path) {
  if (begin("remove", path) == Outcome::kLie) return;
  const Node& node = nodes_.at(need("remove", path));
  if (node.is_directory) fail_storage("remove", path, EISDIR);
  change_entries({{need("remove", directory_of(path)), file_name_of(path), 0}});
}

void FaultFileSystem::remove_tree(const std::string& path) {
  const auto id = find(path);
  if (!id) return;
  const auto entries = nodes_.at(*id).entries;
  for (const auto& [name, child] : entries) remove_tree(join_path(path, name));
  if (begin("remove", path) == Outcome::kLie) return;
  change_entries({{need("remove", directory_of(path)), file_name_of(path), 0}});
}

void FaultFileSystem::sync_directory(const std::string& path) {
  const Outcome outcome = begin("sync directory", path);
  const Id id = need_directory("sync directory", path);
  if (outcome == Outcome::kLie || ignore_syncs_) return;
  std::vector<EntryChange> left;
  for (EntryChange& change : unsynced_changes_) {
    const bool is_here =
        std::any_of(change.edits.begin(), change.edits.end(), [&](const auto& edit) { return edit.directory == id; });
    if (!is_here) {
      left.push_back(std::move(change));
      continue;
    }
    for (const auto& edit : change.edits) {
      auto& entries = nodes_.at(edit.directory).durable_entries;
      if (edit.id == 0) {
        entries.erase(edit.name);
      } else {
        entries[edit.name] = edit.id;
      }
    }
  }
  unsynced_changes_ = std::move(left);
}

uint64_t FaultFileSystem::free_bytes(const std::string& path) {
  begin("look at free space of", path);
  const uint64_t used = used_bytes();
  return used < capacity_ ? capacity_ - used : 0;
}

std::unique_ptr<FileLock> FaultFileSystem::try_lock(const std::string& path) {
  begin("lock", path);
  const auto found = find(path);
  const Id id = found ? *found : add("lock", path, false);
  if (!locked_.insert(id).second) return nullptr;
  return std::make_unique<FaultFileLock>(this, id);
}

}  // namespace octet
