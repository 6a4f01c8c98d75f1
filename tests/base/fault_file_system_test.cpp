#include "core/base/fault_file_system.h"

#include <cerrno>

#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

void write_file(FileSystem& fs, const std::string& path, std::string_view text, bool is_synced) {
  const auto file = fs.create(path);
  file->append(text.data(), text.size());
  if (is_synced) file->sync();
}

}  // namespace

TEST_CASE("a power loss keeps what was synced and any part of the rest", "[base][fault_file_system]") {
  FaultFileSystem fs;
  fs.make_directory("/d");
  fs.sync_directory("/");
  write_file(fs, "/d/named", "synced", true);
  fs.sync_directory("/d");
  write_file(fs, "/d/unnamed", "synced", true);
  const std::string long_text(4096, 'x');
  fs.append_to("/d/named")->append(long_text.data(), long_text.size());

  FaultFileSystem least = fs.after_power_loss(0), most = fs.after_power_loss(1);
  CHECK(least.list("/d") == std::vector<std::string>{"named"});
  CHECK(least.read_text("/d/named") == "synced");
  CHECK(most.list("/d") == std::vector<std::string>{"named", "unnamed"});
  CHECK(most.read_text("/d/named") == "synced" + long_text);

  int names = 0, whole = 0, torn = 0;
  for (uint64_t seed = 2; seed < 200; ++seed) {
    FaultFileSystem after = fs.after_power_loss(seed);
    names += after.exists("/d/unnamed");
    const std::string text = after.read_text("/d/named");
    REQUIRE(text.substr(0, 6) == "synced");
    for (size_t at = 6; at < text.size(); ++at) {
      REQUIRE((text[at] == 'x' || text[at] == '\0'));
      if (at % 512 != 0 && at > 6) REQUIRE(text[at] == text[at - 1]);  // torn at sectors only
    }
    whole += text == "synced" + long_text;
    torn += text.find('x') != std::string::npos && text != "synced" + long_text;
  }
  CHECK((names > 50 && names < 150));
  CHECK(whole > 0);
  CHECK(torn > 100);
}

TEST_CASE("a renaming is kept wholly or not at all", "[base][fault_file_system]") {
  FaultFileSystem fs;
  write_file(fs, "/old", "1", true);
  write_file(fs, "/new", "2", true);
  fs.sync_directory("/");
  fs.rename("/new", "/old");
  int renamed = 0;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    FaultFileSystem after = fs.after_power_loss(seed);
    const bool is_renamed = after.read_text("/old") == "2";
    CHECK(after.exists("/new") == !is_renamed);
    renamed += is_renamed;
  }
  CHECK((renamed > 0 && renamed < 50));
  fs.sync_directory("/");
  CHECK(fs.after_power_loss(0).read_text("/old") == "2");
}

TEST_CASE("the nth call fails, lies or is the last", "[base][fault_file_system]") {
  const auto run = [](FaultFileSystem& fs) { write_file(fs, "/a", "12345678", true); };
  FaultFileSystem clean;
  run(clean);
  CHECK(clean.calls() == 3);
  CHECK(clean.appended_bytes() == 8);

  FaultFileSystem full;
  full.fail_call(1, ENOSPC);
  CHECK_THAT(error_of([&] { run(full); }).report().what, Catch::Contains("cannot write /a: No space left"));
  CHECK(full.read_text("/a") == "1234");

  FaultFileSystem read_only;
  read_only.fail_call(0, EROFS, /*from_then_on=*/true);
  CHECK_THROWS_AS(run(read_only), Error);
  CHECK_THROWS_AS(read_only.exists("/a"), Error);

  FaultFileSystem small;
  small.set_capacity(5);
  CHECK_THROWS_AS(run(small), Error);
  CHECK(small.read_text("/a") == "12345");
  CHECK(small.free_bytes("/") == 0);

  FaultFileSystem lying;
  lying.lie_at_call(1);
  run(lying);
  CHECK(lying.read_text("/a") == "1234567");

  for (uint64_t bytes = 0; bytes < 8; ++bytes) {
    FaultFileSystem killed;
    killed.stop_after_bytes(bytes);
    CHECK_THROWS_AS(run(killed), FaultFileSystem::Stopped);
    CHECK_THROWS_AS(killed.exists("/a"), FaultFileSystem::Stopped);
    killed.restart();
    CHECK(killed.read_text("/a").size() == bytes);
  }
  FaultFileSystem stopped;
  stopped.stop_at_call(1);
  CHECK_THROWS_AS(run(stopped), FaultFileSystem::Stopped);
  stopped.restart();
  CHECK(stopped.read_text("/a").empty());
}

TEST_CASE("data whose sync failed is lost though the next sync succeeds", "[base][fault_file_system]") {
  FaultFileSystem fs;
  const auto file = fs.create("/a");
  fs.sync_directory("/");
  file->append("x", 1);
  fs.fail_call(fs.calls(), EIO);
  CHECK_THROWS_AS(file->sync(), Error);
  file->sync();
  CHECK(fs.read_text("/a") == "x");
  CHECK(fs.after_power_loss(0).read_text("/a").empty());
}

TEST_CASE("the simulated file system refuses what a real one refuses", "[base][fault_file_system]") {
  FaultFileSystem fs;
  fs.make_directories("/a/b");
  fs.make_directories("/a/b");
  write_file(fs, "/a/b/c", "x", true);
  CHECK_THROWS_AS(fs.create("/a/b/c"), Error);
  CHECK_THROWS_AS(fs.create("/x/y"), Error);
  CHECK_THROWS_AS(fs.open("/a"), Error);
  CHECK_THROWS_AS(fs.open("/none"), Error);
  CHECK_THROWS_AS(fs.list("/a/b/c"), Error);
  CHECK_THROWS_AS(fs.make_directory("/a"), Error);
  CHECK_THROWS_AS(fs.make_directories("/a/b/c/d"), Error);
  CHECK_THROWS_AS(fs.remove_file("/a"), Error);
  fs.make_directory("/e");
  CHECK_THROWS_AS(fs.rename("/e", "/a"), Error);  // not empty
  CHECK(fs.info("/a").is_directory);
  CHECK(fs.info("/a/b/c").size == 1);
  {
    const auto lock = fs.try_lock("/lock");
    CHECK(fs.try_lock("/lock") == nullptr);
  }
  CHECK(fs.try_lock("/lock") != nullptr);
  fs.write_atomically("/a/b/c", "new");
  CHECK(fs.read_text("/a/b/c") == "new");
  fs.remove_tree("/a");
  CHECK(fs.list("/") == std::vector<std::string>{"e", "lock"});
}

}  // namespace octet::test
