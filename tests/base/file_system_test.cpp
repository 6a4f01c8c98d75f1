#include "core/base/file_system.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>

#include "core/base/posix_io.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

FileSystem& fs() { return real_file_system(); }

void write_file(const std::string& path, std::string_view text) {
  const auto file = fs().create(path);
  file->append(text.data(), text.size());
  file->sync();
}

}  // namespace

TEST_CASE("paths are joined and taken apart", "[base][file_system]") {
  CHECK(join_path("a", "b") == "a/b");
  CHECK(join_path("a/", "b") == "a/b");
  CHECK(join_path("", "b") == "b");
  CHECK(join_path("/", "b") == "/b");
  CHECK(file_name_of("a/b.txt") == "b.txt");
  CHECK(file_name_of("a/b/") == "b");
  CHECK(file_name_of("b") == "b");
  CHECK(directory_of("a/b.txt") == "a");
  CHECK(directory_of("a//b/") == "a");
  CHECK(directory_of("b") == ".");
  CHECK(directory_of("/b") == "/");
  CHECK(directory_of("/") == "/");
}

TEST_CASE("files are created, read, appended to, listed and removed", "[base][file_system]") {
  const TemporaryDirectory directory;
  const std::string path = directory / "a.txt";
  CHECK_FALSE(fs().exists(path));
  write_file(path, "hello");
  CHECK(fs().exists(path));
  CHECK(fs().read_text(path) == "hello");
  fs().append_to(path)->append(", world", 7);
  const auto file = fs().open(path);
  CHECK(file->size() == 12);
  char part[5] = {};
  file->read_at(7, part, 5);
  CHECK(std::string_view(part, 5) == "world");
  CHECK(fs().info(path).is_regular);
  CHECK(fs().info(path).size == 12);
  struct stat status {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);

  fs().make_directories(directory / "d/e/f");
  fs().make_directories(directory / "d/e/f");
  write_file(directory / "d/e/g", "");
  REQUIRE(::symlink("/", (directory / "d/e/link").c_str()) == 0);
  CHECK(fs().list(directory / "d/e") == std::vector<std::string>{"f", "g", "link"});
  CHECK(fs().info(directory / "d").is_directory);
  fs().rename(path, directory / "d/moved");
  CHECK(fs().list(directory.path()) == std::vector<std::string>{"d"});
  fs().sync_directory(directory.path());
  fs().remove_tree(directory / "d");
  fs().remove_tree(directory / "d");
  CHECK(fs().list(directory.path()).empty());
  CHECK(fs().list("/").size() > 3);  // the link was not followed
  CHECK(fs().free_bytes(directory.path()) > 0);
}

TEST_CASE("every failure of the file system names the path and the reason", "[base][file_system]") {
  const TemporaryDirectory directory;
  const std::string missing = directory / "missing", file = directory / "file";
  write_file(file, "12345");
  const std::vector<std::pair<std::function<void()>, int>> calls = {
      {[&] { fs().open(missing); }, ENOENT},
      {[&] { fs().create(file); }, EEXIST},
      {[&] { fs().create(missing + "/x"); }, ENOENT},
      {[&] { fs().append_to(file + "/x"); }, ENOTDIR},
      {[&] { fs().info(missing); }, ENOENT},
      {[&] { fs().list(missing); }, ENOENT},
      {[&] { fs().list(file); }, ENOTDIR},
      {[&] { fs().make_directory(file); }, EEXIST},
      {[&] { fs().make_directories(file); }, ENOTDIR},
      {[&] { fs().make_directories(file + "/x"); }, ENOTDIR},
      {[&] { fs().rename(missing, file); }, ENOENT},
      {[&] { fs().remove_file(missing); }, ENOENT},
      {[&] { fs().sync_directory(missing); }, ENOENT},
      {[&] { fs().free_bytes(missing); }, ENOENT},
      {[&] { fs().exists(std::string(5000, 'x')); }, ENAMETOOLONG},
  };
  for (const auto& [call, reason] : calls) {
    const Error error = error_of(call);
    CHECK(error.kind() == ErrorKind::kStorage);
    CHECK(error.code() == 5);
    CHECK_THAT(error.report().what, Catch::Contains(std::strerror(reason)));
    CHECK_THAT(error.report().what,
               reason == ENAMETOOLONG ? Catch::Contains("xxx") : Catch::Contains(directory.path()));
    CHECK_FALSE(error.report().fix.empty());
  }
  char bytes[3] = {};
  CHECK_THAT(error_of([&] { fs().open(file)->read_at(3, bytes, 3); }).report().what,
             Catch::Contains("ends after byte 5"));
  CHECK_THAT(error_of([&] { fs().open(file)->read_at(~uint64_t(0) >> 1, bytes, 1); }).report().what,
             Catch::Contains(file));
  CHECK_THAT(error_of([&] { fs().read_text(file, 4); }).report().what, Catch::Contains("at most 4"));
  CHECK(fs().read_text(file, 5) == "12345");
}

TEST_CASE("links, pipes, directories and devices are refused at once", "[base][file_system]") {
  const TemporaryDirectory directory;
  write_file(directory / "file", "x");
  const std::string link = directory / "link", dangling = directory / "dangling", pipe = directory / "pipe";
  REQUIRE(::symlink("file", link.c_str()) == 0);
  REQUIRE(::symlink("nothing", dangling.c_str()) == 0);
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  const std::vector<std::pair<std::string, std::string>> cases = {{link, "a symbolic link"},
                                                                  {dangling, "a symbolic link"},
                                                                  {pipe, "a pipe"},
                                                                  {directory.path(), "a directory"},
                                                                  {"/dev/null", "a device"}};
  for (const auto& [path, kind] : cases) {
    CAPTURE(path);
    CHECK_THAT(error_of([&] { fs().open(path); }).report().what, Catch::Contains(kind));
    CHECK_THAT(error_of([&] { fs().append_to(path); }).report().what, Catch::Contains(kind));
    CHECK_FALSE(fs().info(path).is_regular);
  }
  CHECK(fs().exists(dangling));
  CHECK_FALSE(fs().exists(directory / "nothing"));
}

TEST_CASE("an atomic write leaves the whole new text or the whole old one", "[base][file_system]") {
  const TemporaryDirectory directory;
  const std::string path = directory / "state";
  write_file(directory / ".state.tmp", "half of something");  // left by a run that was killed
  fs().write_atomically(path, "one");
  fs().write_atomically(path, "two");
  CHECK(fs().read_text(path) == "two");
  CHECK(fs().list(directory.path()) == std::vector<std::string>{"state"});
  fs().make_directories(directory / "taken/by/a/directory");
  CHECK(error_of([&] { fs().write_atomically(directory / "taken", "x"); }).kind() == ErrorKind::kStorage);
  CHECK(fs().list(directory.path()) == std::vector<std::string>{"state", "taken"});
}

TEST_CASE("interrupted and short calls are continued", "[base][file_system]") {
  const std::string from = "a text that is moved one, two, three bytes at a time";
  std::string to;
  int calls = 0;
  const Transfer transfer = transfer_fully(from.size(), [&](uint64_t done, uint64_t wanted) -> int64_t {
    REQUIRE(done == to.size());
    REQUIRE(wanted == from.size() - done);
    if (++calls % 2 == 0) return errno = EINTR, -1;
    const uint64_t n = std::min<uint64_t>(uint64_t(calls % 3 + 1), wanted);
    to.append(from, done, n);
    return int64_t(n);
  });
  CHECK(transfer.error == 0);
  CHECK(transfer.bytes == from.size());
  CHECK(to == from);
  const auto broken = [](uint64_t done, uint64_t) -> int64_t { return done < 3 ? 1 : (errno = EIO, -1); };
  CHECK(transfer_fully(9, broken).bytes == 3);
  CHECK(transfer_fully(9, broken).error == EIO);
  const Transfer ended = transfer_fully(9, [](uint64_t done, uint64_t) -> int64_t { return done < 4; });
  CHECK((ended.bytes == 4 && ended.error == 0));
}

TEST_CASE("a file that grows over a limit is reported with its path", "[base][file_system]") {
  const TemporaryDirectory directory;
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1000, 1000};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(2);
    const auto file = fs().create(directory / "file");
    const std::string text(999, 'x');
    try {
      file->append(text.data(), text.size());
      file->append(text.data(), text.size());  // one byte fits, which is a short write, and then none
    } catch (const Error& error) {
      ::_exit(error.code() == 5 && error.report().what.find("too large") != std::string::npos ? 0 : 3);
    }
    ::_exit(4);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
  CHECK(fs().info(directory / "file").size == 1000);
}

TEST_CASE("a lock excludes other processes and ends with its holder", "[base][file_system]") {
  const TemporaryDirectory directory;
  const std::string path = directory / "lock";
  auto lock = fs().try_lock(path);
  REQUIRE(lock != nullptr);
  CHECK(fs().try_lock(path) == nullptr);
  lock.reset();
  int ready[2];
  REQUIRE(::pipe(ready) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto held = fs().try_lock(path);
    const char answer = held != nullptr ? 'y' : 'n';
    if (::write(ready[1], &answer, 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  char answer = 0;
  REQUIRE(::read(ready[0], &answer, 1) == 1);
  CHECK(answer == 'y');
  CHECK(fs().try_lock(path) == nullptr);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  CHECK(fs().try_lock(path) != nullptr);
  ::close(ready[0]), ::close(ready[1]);
}

}  // namespace octet::test
