#include "core/base/file_system.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "core/base/error.h"
#include "core/base/posix_io.h"

namespace octet {
namespace {

std::string fix_for(int error) {
  switch (error) {
    case ENOSPC:
      return "free some space on this file system, or write to another one";
    case EDQUOT:
      return "free some of your disk quota, or write to another file system";
    case EROFS:
      return "this file system is mounted read-only; write to another one";
    case EACCES:
    case EPERM:
      return "check who owns the path and its permissions (ls -ld PATH)";
    case ENOENT:
      return "check the spelling of the path";
    case ENOTDIR:
      return "a part of the path is a file; name a directory there";
    case EEXIST:
    case ENOTEMPTY:
      return "remove or rename what is there, or choose another name";
    case EIO:
      return "the disk or the network file system fails; look at the system log (dmesg) before trusting it again";
    case ESTALE:
      return "the network file system was remounted; start again from a fresh shell";
    case EXDEV:
      return "both names must lie on one file system";
    case ENAMETOOLONG:
      return "choose a shorter path";
    case EMFILE:
    case ENFILE:
      return "raise the limit of open files (ulimit -n)";
    case EFBIG:
      return "raise the file size limit (ulimit -f), or use a file system that takes larger files";
    default:
      return "";
  }
}

}  // namespace

void fail_storage(const char* call, const std::string& path, int error) {
  fail(ErrorKind::kStorage, {.what = fmt::format("cannot {} {}: {}", call, path, std::strerror(error)),
                             .where = path,
                             .why = "",
                             .fix = fix_for(error)});
}

namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// Repeats a call that a signal interrupted.
template <class Call>
int retried(Call&& call) {
  int result;
  do result = call();
  while (result < 0 && errno == EINTR);
  return result;
}

std::string kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISLNK(mode)) return "a symbolic link";
  return "a device";
}

// O_NONBLOCK keeps the open of a pipe without a writer from waiting for ever; it means nothing for a regular file.
Descriptor open_regular(const char* call, const std::string& path, int flags) {
  Descriptor fd(retried([&] { return ::open(path.c_str(), flags | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600); }));
  if (fd.get() < 0) {
    const int error = errno;
    struct stat status {};
    // O_NOFOLLOW answers ELOOP for a link, and O_WRONLY answers EISDIR or ENXIO: say what is there instead.
    if ((error == ELOOP || error == EISDIR || error == ENXIO) && ::lstat(path.c_str(), &status) == 0 &&
        !S_ISREG(status.st_mode)) {
      fail(ErrorKind::kStorage, {.what = fmt::format("cannot {} {}: it is {}", call, path, kind_of(status.st_mode)),
                                 .where = path,
                                 .why = "only regular files are opened; anything else may block or lead elsewhere",
                                 .fix = "name the file itself"});
    }
    fail_storage(call, path, error);
  }
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) fail_storage(call, path, errno);
  if (!S_ISREG(status.st_mode)) {
    fail(ErrorKind::kStorage, {.what = fmt::format("cannot {} {}: it is {}", call, path, kind_of(status.st_mode)),
                               .where = path,
                               .why = "only regular files are opened; anything else may block or lead elsewhere",
                               .fix = "name the file itself"});
  }
  return fd;
}

class RealReadableFile final : public ReadableFile {
 public:
  explicit RealReadableFile(const std::string& path) : path_(path), fd_(open_regular("open", path, O_RDONLY)) {
    struct stat status {};
    if (::fstat(fd_.get(), &status) != 0) fail_storage("open", path_, errno);
    size_ = uint64_t(status.st_size);
  }
  uint64_t size() const override { return size_; }
  void read_at(uint64_t offset, void* to, uint64_t bytes) const override {
    if (bytes == 0) return;
    const Transfer read = transfer_fully(bytes, [&](uint64_t done, uint64_t wanted) {
      return ::pread(fd_.get(), static_cast<char*>(to) + done, wanted, off_t(offset + done));
    });
    if (read.error != 0) fail_storage("read", path_, read.error);
    if (read.bytes < bytes) {
      fail(ErrorKind::kStorage,
           {.what = fmt::format("cannot read {}: it ends after byte {}; wanted {} bytes from byte {}", path_,
                                offset + read.bytes, bytes, offset),
            .where = path_,
            .why = "",
            .fix = "the file is truncated, or another program changes it; write or copy it again"});
    }
  }

 private:
  std::string path_;
  Descriptor fd_;
  uint64_t size_ = 0;
};

class RealWritableFile final : public WritableFile {
 public:
  RealWritableFile(const char* call, const std::string& path, int flags)
      : path_(path), fd_(open_regular(call, path, flags)) {}
  void append(const void* from, uint64_t bytes) override {
    const Transfer written = transfer_fully(bytes, [&](uint64_t done, uint64_t wanted) {
      return ::write(fd_.get(), static_cast<const char*>(from) + done, wanted);
    });
    if (written.bytes < bytes) fail_storage("write", path_, written.error != 0 ? written.error : ENOSPC);
  }
  void sync() override {
    if (retried([&] { return ::fsync(fd_.get()); }) != 0) fail_storage("sync", path_, errno);
  }

 private:
  std::string path_;
  Descriptor fd_;
};

class RealFileLock final : public FileLock {
 public:
  explicit RealFileLock(Descriptor fd) : fd_(std::move(fd)) {}

 private:
  Descriptor fd_;  // closing it gives the lock back, and so does the death of the process
};

std::vector<std::string> names_in(const std::string& path, Descriptor fd) {
  DIR* directory = ::fdopendir(fd.get());
  if (directory == nullptr) fail_storage("list", path, errno);
  fd.release();
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(directory)) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
    errno = 0;
  }
  const int error = errno;
  ::closedir(directory);
  if (error != 0) fail_storage("list", path, error);
  std::sort(names.begin(), names.end());
  return names;
}

Descriptor open_directory(const char* call, const std::string& path, int parent, const char* name) {
  Descriptor fd(
      retried([&] { return ::openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC); }));
  if (fd.get() < 0) fail_storage(call, path, errno);
  return fd;
}

// Works on names below an open directory, so that a link that appears meanwhile leads nowhere.
void remove_below(const std::string& path, int parent, const char* name) {
  struct stat status {};
  if (::fstatat(parent, name, &status, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT) return;
    fail_storage("remove", path, errno);
  }
  if (!S_ISDIR(status.st_mode)) {
    if (::unlinkat(parent, name, 0) != 0 && errno != ENOENT) fail_storage("remove", path, errno);
    return;
  }
  const Descriptor directory = open_directory("remove", path, parent, name);
  for (const std::string& child : names_in(path, Descriptor(::fcntl(directory.get(), F_DUPFD_CLOEXEC, 0)))) {
    remove_below(join_path(path, child), directory.get(), child.c_str());
  }
  if (::unlinkat(parent, name, AT_REMOVEDIR) != 0 && errno != ENOENT) fail_storage("remove", path, errno);
}

class RealFileSystem final : public FileSystem {
 public:
  std::unique_ptr<ReadableFile> open(const std::string& path) override {
    return std::make_unique<RealReadableFile>(path);
  }
  std::unique_ptr<WritableFile> create(const std::string& path) override {
    return std::make_unique<RealWritableFile>("create", path, O_WRONLY | O_CREAT | O_EXCL);
  }
  std::unique_ptr<WritableFile> append_to(const std::string& path) override {
    return std::make_unique<RealWritableFile>("open for appending", path, O_WRONLY | O_CREAT | O_APPEND);
  }
  bool exists(const std::string& path) override {
    struct stat status {};
    if (::lstat(path.c_str(), &status) == 0) return true;
    if (errno != ENOENT && errno != ENOTDIR) fail_storage("look at", path, errno);
    return false;
  }
  FileInfo info(const std::string& path) override {
    struct stat status {};
    if (::lstat(path.c_str(), &status) != 0) fail_storage("look at", path, errno);
    return {.is_directory = S_ISDIR(status.st_mode),
            .is_regular = S_ISREG(status.st_mode),
            .size = uint64_t(status.st_size),
            .modified_ns = int64_t(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec};
  }
  std::vector<std::string> list(const std::string& directory) override {
    Descriptor fd(retried([&] { return ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC); }));
    if (fd.get() < 0) fail_storage("list", directory, errno);
    return names_in(directory, std::move(fd));
  }
  void make_directory(const std::string& path) override {
    if (::mkdir(path.c_str(), 0700) != 0) fail_storage("create directory", path, errno);
  }
  void make_directories(const std::string& path) override {
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0) {
      if (!S_ISDIR(status.st_mode)) fail_storage("create directory", path, ENOTDIR);
      return;
    }
    if (errno != ENOENT) fail_storage("create directory", path, errno);
    const std::string parent = directory_of(path);
    if (parent != path) make_directories(parent);
    // Another process may make the same directory at the same moment.
    if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) fail_storage("create directory", path, errno);
    sync_directory(parent);
  }
  void rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) {
      const int error = errno;
      fail(ErrorKind::kStorage, {.what = fmt::format("cannot rename {} to {}: {}", from, to, std::strerror(error)),
                                 .where = from,
                                 .why = "",
                                 .fix = fix_for(error)});
    }
  }
  void remove_file(const std::string& path) override {
    if (::unlink(path.c_str()) != 0) fail_storage("remove", path, errno);
  }
  void remove_tree(const std::string& path) override { remove_below(path, AT_FDCWD, path.c_str()); }
  void sync_directory(const std::string& path) override {
    const Descriptor fd(retried([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
    if (fd.get() < 0) fail_storage("sync directory", path, errno);
    // Some network file systems cannot sync a directory and say so with EINVAL; their renames are synchronous.
    if (retried([&] { return ::fsync(fd.get()); }) != 0 && errno != EINVAL) fail_storage("sync directory", path, errno);
  }
  uint64_t free_bytes(const std::string& path) override {
    struct statvfs status {};
    if (retried([&] { return ::statvfs(path.c_str(), &status); }) != 0)
      fail_storage("look at free space of", path, errno);
    return uint64_t(status.f_bavail) * uint64_t(status.f_frsize);
  }
  std::unique_ptr<FileLock> try_lock(const std::string& path) override {
    Descriptor fd = open_regular("lock", path, O_RDWR | O_CREAT);
    // An open-file-description lock: it ends with the process however that ends, and network file systems honour it
    // between machines.
    struct flock whole {};
    whole.l_type = F_WRLCK;
    whole.l_whence = SEEK_SET;
    if (retried([&] { return ::fcntl(fd.get(), F_OFD_SETLK, &whole); }) == 0) {
      return std::make_unique<RealFileLock>(std::move(fd));
    }
    if (errno == EAGAIN || errno == EACCES) return nullptr;
    fail_storage("lock", path, errno);
  }
};

}  // namespace

std::string FileSystem::read_text(const std::string& path, uint64_t limit_bytes) {
  const auto file = open(path);
  if (file->size() > limit_bytes) {
    fail(ErrorKind::kStorage,
         {.what = fmt::format("{} has {} bytes; at most {} are read into memory", path, file->size(), limit_bytes),
          .where = path,
          .why = "a file of this kind is never that large",
          .fix = "check that this is the file that was meant"});
  }
  std::string text(file->size(), '\0');
  file->read_at(0, text.data(), text.size());
  return text;
}

void FileSystem::write_atomically(const std::string& path, std::string_view content) {
  const std::string directory = directory_of(path);
  const std::string temporary = join_path(directory, fmt::format(".{}.tmp", file_name_of(path)));
  if (exists(temporary)) remove_file(temporary);  // left by a run that was killed here
  try {
    {
      const auto file = create(temporary);
      file->append(content.data(), content.size());
      file->sync();
    }
    rename(temporary, path);
  } catch (const Error&) {
    try {
      if (exists(temporary)) remove_file(temporary);
    } catch (const Error&) {  // the first error is the one to report
    }
    throw;
  }
  sync_directory(directory);
}

FileSystem& real_file_system() {
  static RealFileSystem file_system;
  return file_system;
}

std::string join_path(std::string_view directory, std::string_view name) {
  if (directory.empty()) return std::string(name);
  if (directory.back() == '/') return fmt::format("{}{}", directory, name);
  return fmt::format("{}/{}", directory, name);
}

namespace {
std::string_view without_end_slashes(std::string_view path) {
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  return path;
}
}  // namespace

std::string file_name_of(std::string_view path) {
  path = without_end_slashes(path);
  const size_t slash = path.rfind('/');
  return std::string(slash == std::string_view::npos || path.size() == 1 ? path : path.substr(slash + 1));
}

std::string directory_of(std::string_view path) {
  path = without_end_slashes(path);
  const size_t slash = path.rfind('/');
  if (slash == std::string_view::npos) return ".";
  return std::string(slash == 0 ? "/" : without_end_slashes(path.substr(0, slash)));
}

}  // namespace octet
