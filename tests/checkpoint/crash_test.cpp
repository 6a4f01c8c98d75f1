// Every point of a save at which a process or a machine may stop, or a call may fail: the older checkpoint or the new
// one is there afterwards, bit for bit, and never neither or a mixture.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "tests/checkpoint/small_checkpoint.h"
#include "tests/support/memory.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

constexpr int64_t kOld = 10, kNew = 20;

// The old checkpoint alone, synced.
FaultFileSystem with_old_checkpoint() {
  FaultFileSystem fs;
  SmallState(kOld).save(fs);
  fs.restart();
  return fs;
}

struct SaveSize {
  uint64_t calls, bytes;
};
SaveSize size_of_save(const FaultFileSystem& before) {
  FaultFileSystem fs = before;
  SmallState(kNew).save(fs);
  return {fs.calls(), fs.appended_bytes()};
}

constexpr uint64_t kStride = kIsSanitized ? 17 : 1;  // instrumented builds visit a part of the points

}  // namespace

TEST_CASE("a process killed at any byte of a save leaves the old checkpoint or the new one", "[checkpoint][crash]") {
  const FaultFileSystem before = with_old_checkpoint();
  const SmallState state(kNew);
  const SaveSize save = size_of_save(before);
  REQUIRE(save.bytes > 5000);
  uint64_t recovered_old = 0, recovered_new = 0;
  for (uint64_t bytes = 0; bytes <= save.bytes; bytes += kStride) {
    CAPTURE(bytes);
    FaultFileSystem fs = before;
    fs.stop_after_bytes(bytes);
    try {
      state.save(fs);
    } catch (const FaultFileSystem::Stopped&) {
    }
    fs.restart();
    const int64_t step = recovered_step(fs);
    REQUIRE((step == kOld || step == kNew));
    ++(step == kOld ? recovered_old : recovered_new);
  }
  CHECK(recovered_old > 5000 / kStride);
  CHECK(recovered_new > 0);  // the bytes of LATEST come after the commit
}

TEST_CASE("a process killed at any call of a save, a removal or a clean-up loses nothing", "[checkpoint][crash]") {
  FaultFileSystem before = with_old_checkpoint();
  const auto sweep = [](const FaultFileSystem& start, auto&& run, std::initializer_list<int64_t> allowed) {
    uint64_t call = 0;
    for (bool is_stopped = true; is_stopped; ++call) {
      CAPTURE(call);
      FaultFileSystem fs = start;
      fs.stop_at_call(call);
      is_stopped = false;
      try {
        run(fs);
      } catch (const FaultFileSystem::Stopped&) {
        is_stopped = true;
      }
      fs.restart();
      FaultFileSystem again = fs;
      const int64_t step = recovered_step(fs);
      REQUIRE(std::find(allowed.begin(), allowed.end(), step) != allowed.end());
      // The new process is killed in its own clean-up, at one point, and a third one starts.
      again.stop_at_call(call % 29);
      try {
        clean_up_checkpoints(again, kDirectory);
        find_newest_good_checkpoint(again, kDirectory);
      } catch (const FaultFileSystem::Stopped&) {
      }
      again.restart();
      REQUIRE(recovered_step(again) == step);
    }
    return call;
  };
  CHECK(sweep(before, [](FileSystem& fs) { SmallState(kNew).save(fs); }, {kOld, kNew}) > 60);
  for (const int64_t step : {20, 30, 40}) SmallState(step).save(before);
  before.restart();
  CHECK(sweep(before, [](FileSystem& fs) { remove_old_checkpoints(fs, kDirectory, 1); }, {40}) > 60);
  before.content(kDirectory + "/step-00000040/config.yaml")[0] ^= 1;
  CHECK(sweep(before, [](FileSystem& fs) { find_newest_good_checkpoint(fs, kDirectory); }, {30}) > 20);
}

TEST_CASE("a power loss at any call of a save keeps the old checkpoint or the new one", "[checkpoint][crash]") {
  const FaultFileSystem before = with_old_checkpoint();
  const SaveSize save = size_of_save(before);
  const SmallState state(kNew);
  constexpr uint64_t kSubsets = kIsSanitized ? 4 : 64;
  uint64_t recovered_old = 0, recovered_new = 0;
  for (uint64_t call = 0; call <= save.calls; ++call) {
    FaultFileSystem fs = before;
    fs.stop_at_call(call);
    bool is_done = true;
    try {
      state.save(fs);
    } catch (const FaultFileSystem::Stopped&) {
      is_done = false;
    }
    for (uint64_t subset = 0; subset < kSubsets; ++subset) {
      CAPTURE(call, subset);
      FaultFileSystem after = fs.after_power_loss(subset == 0 ? 0 : subset == 1 ? 1 : call * kSubsets + subset + 2);
      const int64_t step = recovered_step(after);
      REQUIRE((step == kNew || (step == kOld && !is_done)));
      ++(step == kOld ? recovered_old : recovered_new);
    }
  }
  CHECK(recovered_old > 0);
  CHECK(recovered_new > 0);
}

TEST_CASE("a power loss amid the bytes of a save keeps the old checkpoint", "[checkpoint][crash]") {
  const FaultFileSystem before = with_old_checkpoint();
  const SaveSize save = size_of_save(before);
  const SmallState state(kNew);
  for (uint64_t bytes = 0; bytes < save.bytes; bytes += 61 * kStride) {
    FaultFileSystem fs = before;
    fs.stop_after_bytes(bytes);
    CHECK_THROWS_AS(state.save(fs), FaultFileSystem::Stopped);
    for (uint64_t subset = 0; subset < 8; ++subset) {
      CAPTURE(bytes, subset);
      FaultFileSystem after = fs.after_power_loss(bytes * 8 + subset);
      const int64_t step = recovered_step(after);
      REQUIRE((step == kOld || step == kNew));
    }
  }
}

TEST_CASE("the power loss test sees a save that does not sync", "[checkpoint][crash]") {
  const FaultFileSystem before = with_old_checkpoint();
  FaultFileSystem fs = before;
  fs.ignore_syncs();
  SmallState(kNew).save(fs);
  int lost = 0;
  for (uint64_t seed = 0; seed < 64; ++seed) {
    FaultFileSystem after = fs.after_power_loss(seed);
    lost += recovered_step(after) != kNew;
  }
  CHECK(lost > 30);
}

TEST_CASE("a call that fails in a save costs that save at most", "[checkpoint][crash]") {
  const FaultFileSystem before = with_old_checkpoint();
  const SaveSize save = size_of_save(before);
  const SmallState state(kNew);
  const bool is_lasting = GENERATE(false, true);
  const int error_number = GENERATE(ENOSPC, EIO, EDQUOT, EROFS, EACCES, ESTALE, EXDEV);
  CAPTURE(is_lasting, std::strerror(error_number));
  uint64_t saved = 0, refused = 0;
  for (uint64_t call = 0; call < save.calls; ++call) {
    CAPTURE(call);
    FaultFileSystem fs = before;
    fs.fail_call(call, error_number, is_lasting);
    bool is_saved = false;
    try {
      state.save(fs);
      is_saved = true;
    } catch (const Error& error) {
      REQUIRE(error.code() == 5);
      REQUIRE_THAT(error.report().what,
                   Catch::Contains("step 20 is not saved") && Catch::Contains(std::strerror(error_number)));
      REQUIRE_THAT(error.report().why, Catch::Contains("needs") && Catch::Contains("free"));
      REQUIRE_FALSE(error.report().fix.empty());
    }
    ++(is_saved ? saved : refused);
    fs.restart();
    if (!is_lasting && !is_saved) {  // the disk came back, so what was written is gone
      for (const std::string& name : fs.list(kDirectory)) REQUIRE((name[0] != '.' && name != "step-00000020"));
    }
    FaultFileSystem retried = fs;
    const int64_t step = recovered_step(fs);
    REQUIRE((step == kNew || (step == kOld && !is_saved)));
    if (step == kOld) {
      clean_up_checkpoints(retried, kDirectory);
      state.save(retried);
      REQUIRE(recovered_step(retried) == kNew);
    }
  }
  CHECK(refused > 10);
  CHECK(saved > (is_lasting ? 0 : 10));  // a shard is written twice, and LATEST is a hint
}

TEST_CASE("a failed sync is answered with a new file", "[checkpoint][crash]") {
  const FaultFileSystem before = with_old_checkpoint();
  const SaveSize save = size_of_save(before);
  // Where the save goes on after a failed call, a power loss right after it must not find the lost bytes missing.
  for (uint64_t call = 0; call < save.calls; ++call) {
    FaultFileSystem fs = before;
    fs.fail_call(call, EIO);
    try {
      SmallState(kNew).save(fs);
    } catch (const Error&) {
      continue;
    }
    for (uint64_t subset = 0; subset < 4; ++subset) {
      FaultFileSystem after = fs.after_power_loss(subset);
      CAPTURE(call, subset);
      REQUIRE(recovered_step(after) == kNew);
    }
  }
}

TEST_CASE("a disk without room for the whole save is refused at once", "[checkpoint][crash]") {
  const FaultFileSystem before = with_old_checkpoint();
  const SaveSize save = size_of_save(before);
  const SmallState state(kNew);
  const uint64_t big = uint64_t(1) << 40, used = big - FaultFileSystem(before).free_bytes("/");
  // The check at the start asks for a little more than a save writes.
  const uint64_t needed = checkpoint_bytes(state.pieces(), state.text_files());
  REQUIRE(needed > save.bytes);
  REQUIRE(needed < save.bytes + 16384);
  for (uint64_t room = 0; room < save.bytes; room += 37 * kStride) {
    CAPTURE(room);
    FaultFileSystem fs = before;
    fs.set_capacity(used + room);
    const Error error = error_of([&] { state.save(fs); });
    REQUIRE(error.code() == 5);
    REQUIRE_THAT(error.report().what, Catch::Contains("free; a checkpoint needs"));
    REQUIRE(recovered_step(fs) == kOld);
  }
}

TEST_CASE("a disk that lies is found out before the checkpoint counts", "[checkpoint][crash]") {
  const FaultFileSystem before = with_old_checkpoint();
  const SaveSize save = size_of_save(before);
  const SmallState state(kNew);
  int found_out = 0;
  for (uint64_t call = 0; call < save.calls; ++call) {
    CAPTURE(call);
    FaultFileSystem fs = before;
    fs.lie_at_call(call);
    try {
      state.save(fs);
    } catch (const Error& error) {
      REQUIRE(error.code() == 5);
      ++found_out;
    }
    fs.restart();
    const int64_t step = recovered_step(fs);
    REQUIRE((step == kOld || step == kNew));
  }
  CHECK(found_out > 15);
}

TEST_CASE("no failure of a removal leaves fewer than one good checkpoint", "[checkpoint][crash]") {
  FaultFileSystem before = with_old_checkpoint();
  for (const int64_t step : {20, 30, 40}) SmallState(step).save(before);
  before.restart();
  const bool is_lasting = GENERATE(false, true);
  uint64_t call = 0;
  for (bool is_reached = true; is_reached; ++call) {
    CAPTURE(is_lasting, call);
    FaultFileSystem fs = before;
    fs.fail_call(call, EIO, is_lasting);
    const int removed = remove_old_checkpoints(fs, kDirectory, 1);
    is_reached = fs.calls() > call;
    REQUIRE((is_reached || removed == 3));
    fs.restart();
    REQUIRE(recovered_step(fs) == 40);
  }
  CHECK(call > 60);
}

namespace {

// Dies by SIGKILL in the append that crosses a number of bytes; otherwise the real disk.
class KilledFileSystem final : public FileSystem {
 public:
  explicit KilledFileSystem(uint64_t bytes) : left_(bytes) {}
  std::unique_ptr<ReadableFile> open(const std::string& path) override { return real_.open(path); }
  std::unique_ptr<WritableFile> create(const std::string& path) override {
    return std::make_unique<File>(*this, real_.create(path));
  }
  std::unique_ptr<WritableFile> append_to(const std::string& path) override { return real_.append_to(path); }
  bool exists(const std::string& path) override { return real_.exists(path); }
  FileInfo info(const std::string& path) override { return real_.info(path); }
  std::vector<std::string> list(const std::string& path) override { return real_.list(path); }
  void make_directory(const std::string& path) override { real_.make_directory(path); }
  void make_directories(const std::string& path) override { real_.make_directories(path); }
  void rename(const std::string& from, const std::string& to) override { real_.rename(from, to); }
  void remove_file(const std::string& path) override { real_.remove_file(path); }
  void remove_tree(const std::string& path) override { real_.remove_tree(path); }
  void sync_directory(const std::string& path) override { real_.sync_directory(path); }
  uint64_t free_bytes(const std::string& path) override { return real_.free_bytes(path); }
  std::unique_ptr<FileLock> try_lock(const std::string& path) override { return real_.try_lock(path); }

 private:
  class File final : public WritableFile {
   public:
    File(KilledFileSystem& fs, std::unique_ptr<WritableFile> file) : fs_(fs), file_(std::move(file)) {}
    void append(const void* from, uint64_t bytes) override {
      if (bytes < fs_.left_) {
        fs_.left_ -= bytes;
        return file_->append(from, bytes);
      }
      file_->append(from, fs_.left_);
      ::kill(::getpid(), SIGKILL);
    }
    void sync() override { file_->sync(); }

   private:
    KilledFileSystem& fs_;
    std::unique_ptr<WritableFile> file_;
  };

  FileSystem& real_ = real_file_system();
  uint64_t left_;
};

}  // namespace

TEST_CASE("a real process killed amid a save on a real disk loses nothing", "[checkpoint][crash]") {
  const TemporaryDirectory directory;
  FileSystem& fs = real_file_system();
  const std::string checkpoints = directory / "checkpoints";
  const SmallState old_state(kOld), new_state(kNew);
  const auto save = [&](FileSystem& to, const SmallState& state) {
    return save_checkpoint(to, checkpoints, state.info(), state.pieces(), state.text_files(), {.shard_bytes = 400});
  };
  save(fs, old_state);
  const uint64_t bytes = size_of_save(with_old_checkpoint()).bytes;
  int killed = 0, kept = 0;
  constexpr uint64_t kPoints = kIsSanitized ? 20 : 100;
  for (uint64_t point = 0; point < kPoints; ++point) {
    const uint64_t at = 1 + point * bytes / kPoints;
    CAPTURE(at);
    const pid_t child = ::fork();
    if (child == 0) {
      KilledFileSystem dying(at);
      save(dying, new_state);
      ::_exit(0);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    killed += WIFSIGNALED(status);
    clean_up_checkpoints(fs, checkpoints);
    const auto found = find_newest_good_checkpoint(fs, checkpoints);
    REQUIRE(found.has_value());
    const CheckpointReader reader(fs, found->path);
    REQUIRE((old_state.is_in(reader) || new_state.is_in(reader)));
    kept += found->step == kOld;
    if (found->step == kNew) fs.remove_tree(found->path);
  }
  CHECK(killed == int(kPoints));
  CHECK(kept > int(kPoints) / 2);
}

}  // namespace octet::test
