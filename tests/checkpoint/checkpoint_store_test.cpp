#include "tools/train/checkpoint_store.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <numeric>

#include "core/io/safetensors_index.h"
#include "parallel/agreement.h"
#include "tests/checkpoint/small_checkpoint.h"
#include "tests/support/memory.h"
#include "tests/support/temporary_directory.h"
#include "tools/train/run_lock.h"

namespace octet::test {

TEST_CASE("a checkpoint gives back what was saved", "[checkpoint]") {
  FaultFileSystem fs;
  const SmallState state(1200);
  const std::string path = state.save(fs);
  CHECK(path == "/run/checkpoints/step-00001200");
  CHECK(fs.read_text("/run/checkpoints/LATEST") == "step-00001200\n");
  CHECK(verify_checkpoint(fs, path).empty());
  const CheckpointReader reader(fs, path);
  CHECK(state.is_in(reader));
  CHECK(reader.info().tokens == 1200000);
  CHECK(reader.info().code_version == "0.1.0");
  CHECK(reader.info().layout == state.info().layout);
  CHECK(*reader.info().meta.find("loss")->if_double() == 1.5);
  CHECK(reader.num_tensors() == 7);
  const auto bias = reader.find("experts.bias");
  REQUIRE(bias);
  CHECK((bias->group == TensorGroup::kState && bias->dtype == StoredDType::kF32 && bias->shape == Shape{7, 6}));
  CHECK(!reader.find("none"));
  CHECK(error_of([&] { reader.read_tensor("none", nullptr); }).code() == 4);
  CHECK(error_of([&] { reader.text_file("none"); }).code() == 4);
  CHECK(reader.bytes() < checkpoint_bytes(state.pieces(), state.text_files()));
}

TEST_CASE("the directory is a Hugging Face model", "[checkpoint]") {
  FaultFileSystem fs;
  const std::string path = SmallState(3).save(fs);
  const auto files = open_safetensors_index(fs, path);
  CHECK(files.size() > 1);
  size_t tensors = 0;
  for (const auto& file : files) {
    tensors += file->tensors().size();
    CHECK(file->metadata().front().second == "pt");
    for (const auto& tensor : file->tensors()) CHECK(tensor.begin % uint64_t(size_of(tensor.dtype)) == 0);
  }
  CHECK(tensors == 4);
  const std::vector<std::string> names = fs.list(path);
  CHECK(std::count(names.begin(), names.end(), "model-00001-of-00002.safetensors") == 1);
  CHECK(std::count(names.begin(), names.end(), "optim-00001-of-00001.safetensors") == 1);
  CHECK(std::count(names.begin(), names.end(), "state-00001-of-00001.safetensors") == 1);
  CHECK(std::count(names.begin(), names.end(), "config.yaml") == 1);
}

TEST_CASE("the same state is the same bytes, whatever the order of its pieces", "[checkpoint]") {
  FaultFileSystem one, two;
  const SmallState state(5);
  const std::string path = state.save(one);
  auto pieces = state.pieces();
  std::reverse(pieces.begin(), pieces.end());
  save_checkpoint(two, kDirectory, state.info(), pieces, state.text_files(), {.shard_bytes = 400});
  for (const std::string& name : one.list(path)) {
    CHECK(one.read_text(join_path(path, name)) == two.read_text(join_path(path, name)));
  }
}

TEST_CASE("any box of a tensor is read, whatever pieces it was written in", "[checkpoint]") {
  FaultFileSystem fs;
  // 300 x 101 int64: several blocks to a piece, and pieces that end inside of blocks.
  const int64_t rows = 300, cols = 101;
  std::vector<int64_t> values(size_t(rows * cols));
  for (size_t i = 0; i < values.size(); ++i) values[i] = int64_t(i) * 3 + 1;
  std::vector<std::vector<int64_t>> parts;
  std::vector<TensorPiece> pieces;
  const std::vector<Box> boxes = {
      {{0, 0, 0, 0}, {120, 101, 0, 0}}, {{120, 0, 0, 0}, {180, 40, 0, 0}}, {{120, 40, 0, 0}, {180, 61, 0, 0}}};
  for (const Box& box : boxes) {
    parts.emplace_back();
    for (int64_t r = 0; r < box.extent[0]; ++r) {
      for (int64_t c = 0; c < box.extent[1]; ++c) {
        parts.back().push_back(values[size_t((box.start[0] + r) * cols + box.start[1] + c)]);
      }
    }
  }
  for (size_t i = 0; i < boxes.size(); ++i) {
    pieces.push_back({"t", TensorGroup::kOptim, StoredDType::kI64, {rows, cols}, parts[i].data(), boxes[i]});
  }
  const CheckpointInfo info{.run_id = "r", .code_version = ""};
  const CheckpointReader reader(fs, save_checkpoint(fs, kDirectory, info, pieces, {}));
  std::vector<int64_t> whole(values.size());
  reader.read_tensor("t", whole.data());
  CHECK(whole == values);
  const RandomStream random(1, "boxes");
  for (uint64_t round = 0; round < 200; ++round) {
    Box box;
    const auto draw = [&](uint64_t lane, int64_t n) { return int64_t(random.bits(round, lane) % uint64_t(n)); };
    box.start = {draw(0, rows), draw(1, cols), 0, 0};
    box.extent = {1 + draw(2, rows - box.start[0]), 1 + draw(3, cols - box.start[1]), 0, 0};
    if (round % 4 == 0) box.start[1] = 0, box.extent[1] = cols;
    std::vector<int64_t> read(size_t(box.extent[0] * box.extent[1]));
    reader.read_tensor("t", box, read.data());
    bool is_same = true;
    for (int64_t r = 0; r < box.extent[0]; ++r) {
      for (int64_t c = 0; c < box.extent[1]; ++c) {
        is_same &= read[size_t(r * box.extent[1] + c)] == values[size_t((box.start[0] + r) * cols + box.start[1] + c)];
      }
    }
    CHECK(is_same);
  }
  CHECK_THROWS_AS(reader.read_tensor("t", Box{{0, 100, 0, 0}, {1, 2, 0, 0}}, whole.data()), Error);
  CHECK_THROWS_AS(reader.read_tensor("t", Box{{0, 0, 0, 0}, {0, 1, 0, 0}}, whole.data()), Error);
}

TEST_CASE("pieces that make no checkpoint are refused and leave nothing", "[checkpoint]") {
  FaultFileSystem fs;
  const float x[4] = {};
  const TensorPiece good{"a", TensorGroup::kModel, StoredDType::kF32, {4}, x, {}};
  const auto refused = [&](std::vector<TensorPiece> pieces, std::vector<TextFile> files = {}, std::string run = "r") {
    CheckpointInfo info{.run_id = run, .code_version = ""};
    CHECK_THROWS_AS(save_checkpoint(fs, kDirectory, info, pieces, files), Error);
    CHECK_FALSE(fs.exists(kDirectory + "/step-00000000"));
    if (fs.exists(kDirectory)) CHECK(fs.list(kDirectory).empty());
  };
  TensorPiece bad = good;
  bad.name = "a/b", refused({bad});
  bad = good, bad.data = nullptr, refused({bad});
  bad = good, bad.shape = {0}, refused({bad});
  bad = good, bad.box = Box{{0, 0, 0, 0}, {3, 0, 0, 0}}, refused({bad});  // an element is missing
  TensorPiece rest = good;
  rest.box = Box{{2, 0, 0, 0}, {2, 0, 0, 0}}, refused({bad, rest});       // one is there twice
  bad = good, bad.box = Box{{1, 0, 0, 0}, {4, 0, 0, 0}}, refused({bad});  // outside
  refused({good, good});
  refused({good}, {{"../x", ""}});
  refused({good}, {{"manifest.json", ""}});
  refused({good}, {{"x.safetensors", ""}});
  refused({good}, {{"a.txt", ""}, {"a.txt", ""}});
  refused({good}, {}, "");
  refused({good}, {}, "a/b");
}

TEST_CASE("a checkpoint is never written over", "[checkpoint]") {
  FaultFileSystem fs;
  SmallState(10).save(fs);
  const Error error = error_of([&] { SmallState(10).save(fs); });
  CHECK(error.code() == 5);
  CHECK_THAT(error.report().what, Catch::Contains("is there already"));
  CHECK(recovered_step(fs) == 10);
}

TEST_CASE("directories without a manifest do not count and are removed", "[checkpoint][faults]") {
  FaultFileSystem fs;
  SmallState(10).save(fs);
  fs.make_directory(kDirectory + "/step-00000020");
  fs.make_directory(kDirectory + "/step-00000030");
  fs.create(kDirectory + "/step-00000030/manifest.json");
  fs.make_directory(kDirectory + "/.step-40.tmp-run-1");
  fs.create(kDirectory + "/.step-40.tmp-run-1/model-00001-of-00001.safetensors");
  fs.make_directory(kDirectory + "/.trash-step-00000005");
  fs.make_directory(kDirectory + "/step-5");  // not a name that a save gives
  fs.create(kDirectory + "/step-00000050");   // no directory
  fs.create(kDirectory + "/notes.txt");
  CHECK(list_checkpoints(fs, kDirectory).size() == 1);
  CHECK(find_newest_good_checkpoint(fs, kDirectory)->step == 10);
  SmallState(30).save(fs);  // takes the place of the torn one
  clean_up_checkpoints(fs, kDirectory);
  CHECK(fs.list(kDirectory) ==
        std::vector<std::string>{"LATEST", "notes.txt", "step-00000010", "step-00000030", "step-00000050", "step-5"});
  CHECK(recovered_step(fs) == 30);
  CHECK(list_checkpoints(fs, "/nowhere").empty());
  CHECK_FALSE(find_newest_good_checkpoint(fs, "/nowhere").has_value());
  clean_up_checkpoints(fs, "/nowhere");
  // A checkpoint may be copied elsewhere under any name of its own, but not under that of another step.
  fs.rename(kDirectory + "/step-00000030", "/best");
  CHECK(verify_checkpoint(fs, "/best").empty());
  fs.rename("/best", kDirectory + "/step-00000031");
  CHECK_THAT(verify_checkpoint(fs, kDirectory + "/step-00000031").front().what, Catch::Contains("is of step 30"));
}

TEST_CASE("the newest good checkpoint is found and damaged ones are set aside", "[checkpoint][faults]") {
  for (int bad = 1; bad <= 3; ++bad) {
    FaultFileSystem fs;
    for (const int64_t step : {10, 20, 30}) SmallState(step).save(fs);
    for (int i = 0; i < bad; ++i) {
      const std::string shard = fmt::format("{}/step-000000{}0/model-00001-of-00002.safetensors", kDirectory, 3 - i);
      fs.content(shard)[fs.info(shard).size - 1] ^= 4;
    }
    if (bad < 3) {
      CHECK(find_newest_good_checkpoint(fs, kDirectory)->step == 30 - 10 * bad);
      const std::string aside = kDirectory + "/bad-step-00000030";
      CHECK_THAT(fs.read_text(aside + "/reason.txt"), Catch::Contains("tensor model.") && Catch::Contains("block 0"));
      CHECK(list_checkpoints(fs, kDirectory).size() == size_t(3 - bad));
      SmallState(30).save(fs);  // the step is free again
      CHECK(recovered_step(fs) == 30);
      fs.content(kDirectory + "/step-00000030/config.yaml")[0] ^= 1;
      find_newest_good_checkpoint(fs, kDirectory);
      CHECK(fs.exists(kDirectory + "/bad-step-00000030-2/reason.txt"));
    } else {
      const Error error = error_of([&] { find_newest_good_checkpoint(fs, kDirectory); });
      CHECK(error.code() == 4);
      for (const char* step : {"step-00000010/", "step-00000020/", "step-00000030/"}) {
        CHECK_THAT(error.report().what, Catch::Contains(step));
      }
    }
  }
}

TEST_CASE("old checkpoints go when the newest is known to be good", "[checkpoint]") {
  FaultFileSystem fs;
  for (const int64_t step : {10, 20, 30, 40}) SmallState(step).save(fs);
  CHECK(remove_old_checkpoints(fs, kDirectory, 0) == 0);
  CHECK(remove_old_checkpoints(fs, kDirectory, 4) == 0);
  CHECK(remove_old_checkpoints(fs, kDirectory, 3) == 1);
  CHECK(list_checkpoints(fs, kDirectory).front().step == 20);
  fs.content(kDirectory + "/step-00000040/blocks.xxh3")[0] ^= 1;
  CHECK(remove_old_checkpoints(fs, kDirectory, 1) == 0);
  CHECK(list_checkpoints(fs, kDirectory).size() == 3);
  CHECK(recovered_step(fs) == 30);
  CHECK(remove_old_checkpoints(fs, kDirectory, 1) == 1);
  CHECK(recovered_step(fs) == 30);
  CHECK_THROWS_AS(remove_old_checkpoints(fs, kDirectory, -1), Error);
}

TEST_CASE("a disk that is too small is known before the save", "[checkpoint][faults]") {
  FaultFileSystem fs;
  const SmallState state(1);
  const uint64_t needed = checkpoint_bytes(state.pieces(), state.text_files());
  fs.set_capacity(needed);
  require_free_bytes(fs, "/run/not/yet/there", needed);
  const Error error = error_of([&] { require_free_bytes(fs, "/run/not/yet/there", needed + 1); });
  CHECK(error.code() == 5);
  CHECK_THAT(error.report().what, Catch::Contains("KiB free; a checkpoint needs"));
  state.save(fs);
  CHECK(recovered_step(fs) == 1);
}

TEST_CASE("a second run in one directory is refused with the name of the first", "[checkpoint][faults]") {
  const TemporaryDirectory directory;
  FileSystem& fs = real_file_system();
  const std::string run = directory / "run";
  int ready[2];
  REQUIRE(::pipe(ready) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ManualClock clock;
    clock.set_unix_ns(1'700'000'000'000'000'000);
    const RunLock lock(fs, run, clock);
    if (::write(ready[1], "y", 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  char answer = 0;
  REQUIRE(::read(ready[0], &answer, 1) == 1);
  const Error error = error_of([&] { RunLock(fs, run); });
  CHECK(error.code() == 2);
  char host[256] = {};
  REQUIRE(::gethostname(host, sizeof(host) - 1) == 0);
  CHECK_THAT(error.report().what,
             Catch::Contains(fmt::format("process {} on host {}, started 2023-11-14 22:13:20 UTC", child, host)));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  const RunLock taken_over(fs, run);
  CHECK(error_of([&] { RunLock(fs, run); }).report().what.find(fmt::format("process {} on", ::getpid())) !=
        std::string::npos);
  ::close(ready[0]), ::close(ready[1]);
}

TEST_CASE("a checkpoint of many boxes is loaded in little memory", "[checkpoint]") {
  const TemporaryDirectory directory;
  FileSystem& fs = real_file_system();
  constexpr int64_t kExperts = kIsSanitized ? 1 << 8 : 1 << 15, kBoxes = 8, kCols = 4;
  std::vector<int32_t> values(size_t(kExperts * kBoxes * kCols));
  std::iota(values.begin(), values.end(), 0);
  const auto name_of_expert = [](int64_t e) {
    return fmt::format("model.layers.{}.mlp.experts.{}.gate_proj.weight", e / 256, e % 256);
  };
  const pid_t child = ::fork();  // so that this process has no memory to use again
  if (child == 0) {
    std::vector<TensorPiece> pieces;
    for (int64_t i = 0; i < kExperts * kBoxes; ++i) {
      pieces.push_back({name_of_expert(i / kBoxes),
                        TensorGroup::kOptim,
                        StoredDType::kI32,
                        {kBoxes, kCols},
                        &values[size_t(i * kCols)],
                        Box{{i % kBoxes, 0}, {1, kCols}}});
    }
    const auto error =
        error_in([&] { save_checkpoint(fs, directory.path(), {.run_id = "r", .code_version = ""}, pieces, {}); });
    ::_exit(error ? 1 : 0);
  }
  int status = -1;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(status == 0);
  const std::string path = directory / "step-00000000";
  const Cost cost;
  const auto newest = find_newest_good_checkpoint(fs, directory.path());
  const CheckpointReader reader(fs, path);
  std::array<int32_t, size_t(kBoxes * kCols)> read{};
  reader.read_tensor(name_of_expert(kExperts - 1), read.data());
  CHECK(cost.is_within(/*bytes=*/uint64_t(64) << 20, /*seconds=*/30));
  CHECK(newest->path == path);
  CHECK(reader.manifest().pieces.size() == size_t(kExperts * kBoxes));
  CHECK(reader.num_tensors() == size_t(kExperts));
  CHECK(std::equal(read.rbegin(), read.rend(), values.rbegin()));
}

}  // namespace octet::test
