// Checkpoints of many ranks, which here are threads that share a disk: written by some, read by others, and what is
// left when a rank dies, errs or does not see the disk.
#include <cerrno>
#include <functional>
#include <future>

#include "tests/checkpoint/small_checkpoint.h"
#include "tests/checkpoint/thread_ranks.h"
#include "tests/support/memory.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

constexpr int64_t kOld = 10, kNew = 20;

// A state whose tensors lie on ranks: some whole on one rank, some in boxes of rows or columns. The same for the same
// step, on however many ranks.
class RankedState {
 public:
  explicit RankedState(int64_t step, int64_t big_rows = 300) {
    info_.run_id = "run-1";
    info_.step = step;
    info_.tokens = step * 1000;
    info_.code_version = "0.1.0";
    info_.rng.set("seed", 7).set("step", step);
    info_.data_cursor.set("sample", step * 8);
    for (int expert = 0; expert < 5; ++expert) {
      add(fmt::format("experts.{}.weight", expert), TensorGroup::kModel, StoredDType::kBF16, {6, 10}, Cut::kWhole);
      add(fmt::format("experts.{}.weight.master", expert), TensorGroup::kOptim, StoredDType::kF32, {6, 10}, Cut::kRows);
    }
    add("norm.weight", TensorGroup::kModel, StoredDType::kF32, {10}, Cut::kWhole);
    add("big.exp_avg", TensorGroup::kOptim, StoredDType::kI64, {big_rows, 101}, Cut::kRows);  // many blocks
    add("big.exp_avg_sq", TensorGroup::kOptim, StoredDType::kF32, {7, 12}, Cut::kColumns);
    add("step_count", TensorGroup::kState, StoredDType::kI64, {}, Cut::kWhole);
  }

  enum class Cut { kWhole, kRows, kColumns };
  struct Tensor {
    std::string name;
    TensorGroup group;
    StoredDType dtype;
    Shape shape;
    Cut cut;
    std::string data{};
  };

  CheckpointInfo& info() { return info_; }
  const CheckpointInfo& info() const { return info_; }

  // What a rank of so many has: boxes, and their elements.
  struct Part {
    std::vector<TensorPiece> pieces;
    std::vector<std::string> data;
  };
  Part part(int rank, int ranks) const {
    Part part;
    part.data.reserve(tensors_.size());
    for (size_t t = 0; t < tensors_.size(); ++t) {
      const Tensor& tensor = tensors_[t];
      const std::optional<Box> box = box_of(t, rank, ranks);
      if (!box) continue;
      part.data.push_back(elements(tensor, *box));
      part.pieces.push_back({.name = tensor.name,
                             .group = tensor.group,
                             .dtype = tensor.dtype,
                             .shape = tensor.shape,
                             .data = part.data.back().data(),
                             .box = *box});
    }
    return part;
  }

  std::string save(FileSystem& fs, Communicator& world, const std::string& directory = kDirectory) const {
    const Part mine = part(world.rank(), world.size());
    return save_checkpoint(fs, directory, info_, mine.pieces, {{"config.yaml", "model: {}\n"}}, {.shard_bytes = 4096},
                           world);
  }

  // Throws unless the checkpoint has what a rank of so many needs, and it alone is read.
  void require_part(const CheckpointReader& reader, int rank, int ranks) const {
    require(reader.info().step == info_.step && reader.info().rng == info_.rng &&
                reader.info().data_cursor == info_.data_cursor && reader.info().run_id == info_.run_id,
            "another checkpoint");
    for (size_t t = 0; t < tensors_.size(); ++t) {
      const std::optional<Box> box = box_of(t, rank, ranks);
      if (!box) continue;
      const std::string wanted = elements(tensors_[t], *box);
      std::string read(wanted.size(), '\0');
      reader.read_tensor(tensors_[t].name, *box, read.data());
      require(read == wanted, "{} differs on rank {} of {}", tensors_[t].name, rank, ranks);
    }
    require(reader.num_tensors() == tensors_.size(), "{} tensors", reader.num_tensors());
  }

 private:
  void add(const std::string& name, TensorGroup group, StoredDType dtype, const Shape& shape, Cut cut) {
    Tensor tensor{.name = name, .group = group, .dtype = dtype, .shape = shape, .cut = cut};
    tensor.data.resize(size_t(shape.num_elements() * size_of(dtype)));
    const RandomStream random(uint64_t(info_.step), name);
    for (size_t i = 0; i < tensor.data.size(); ++i) tensor.data[i] = char(random.bits(i) & 0xff);
    tensors_.push_back(std::move(tensor));
  }

  std::optional<Box> box_of(size_t t, int rank, int ranks) const {
    const Tensor& tensor = tensors_[t];
    Box box = whole_box(tensor.shape);
    if (tensor.cut == Cut::kWhole) return int(t) % ranks == rank ? std::optional(box) : std::nullopt;
    const size_t axis = tensor.cut == Cut::kRows ? 0 : 1;
    const int64_t n = box.extent[axis];
    box.start[axis] = n * rank / ranks;
    box.extent[axis] = n * (rank + 1) / ranks - box.start[axis];
    return box.extent[axis] > 0 ? std::optional(box) : std::nullopt;
  }

  static std::string elements(const Tensor& tensor, const Box& box) {
    if (tensor.shape.rank() < 2) return tensor.data;
    std::string part;
    const int64_t bytes = size_of(tensor.dtype), cols = tensor.shape.cols();
    for (int64_t row = box.start[0]; row < box.start[0] + box.extent[0]; ++row) {
      part += tensor.data.substr(size_t((row * cols + box.start[1]) * bytes), size_t(box.extent[1] * bytes));
    }
    return part;
  }

  CheckpointInfo info_;
  std::vector<Tensor> tensors_;
};

void save_on(int ranks, SharedDisk& disk, const RankedState& state) {
  run_fine(ranks, [&](Communicator& world) {
    RankFileSystem fs(disk);
    state.save(fs, world);
  });
}

// What a new process finds: the step, whose state must be whole. Removes what is left over.
int64_t found_step(FaultFileSystem& fs) {
  clean_up_checkpoints(fs, kDirectory);
  const auto found = find_newest_good_checkpoint(fs, kDirectory);
  if (!found) return -1;
  RankedState(found->step).require_part(CheckpointReader(fs, found->path), 0, 1);
  return found->step;
}

std::vector<std::string> checkpoint_names(FaultFileSystem& fs) {
  std::vector<std::string> names = fs.list(kDirectory);
  std::erase(names, "LATEST");
  return names;
}

const std::string kOldName = checkpoint_name(kOld), kNewName = checkpoint_name(kNew);

}  // namespace

TEST_CASE("what some ranks save, any other number of ranks reads", "[checkpoint][ranks]") {
  const int writers = GENERATE(1, 2, 3, 5, 8);
  CAPTURE(writers);
  SharedDisk disk;
  const RankedState state(kNew);
  save_on(writers, disk, state);
  const std::string path = join_path(kDirectory, kNewName);
  CHECK(verify_checkpoint(disk.fs, path).empty());
  CHECK(checkpoint_names(disk.fs) == std::vector<std::string>{kNewName});
  for (const int readers : {1, 2, 4, 7, 8}) {
    CAPTURE(readers);
    CHECK_NOTHROW(run_fine(readers, [&](Communicator& world) {
      RankFileSystem fs(disk);
      const auto found = find_newest_good_checkpoint(fs, kDirectory, world);
      require(found && found->step == kNew, "not found");
      state.require_part(CheckpointReader(fs, found->path), world.rank(), world.size());
    }));
  }
}

TEST_CASE("the shards of all ranks are numbered in one row", "[checkpoint][ranks]") {
  SharedDisk disk;
  save_on(4, disk, RankedState(kNew));
  std::map<std::string, int> of_group;
  std::vector<std::string> names;
  for (const std::string& name : disk.fs.list(join_path(kDirectory, kNewName))) {
    if (name.ends_with(".safetensors")) ++of_group[name.substr(0, 5)], names.push_back(name);
  }
  CHECK(of_group["model"] == 2);  // ranks 0 and 2 have all of them
  CHECK(of_group["optim"] == 8);  // each rank has one that is larger than a shard should be, and the others
  int number = 0;
  for (const std::string& name : names) {
    if (name.starts_with("optim"))
      CHECK(name == fmt::format("optim-{:05}-of-{:05}.safetensors", ++number, of_group["optim"]));
  }
}

TEST_CASE("a rank that dies at any collective of a save costs that save at most", "[checkpoint][ranks]") {
  constexpr int kRanks = 3;
  struct Run {
    SharedDisk disk;
    std::vector<Outcome> outcomes;
  };
  const auto run = [](int victim, int64_t collective) {
    auto result = std::make_unique<Run>();
    save_on(kRanks, result->disk, RankedState(kOld));
    LocalOptions options;
    options.faults = {{.rank = victim, .at_collective = collective}};
    result->outcomes = outcomes(kRanks, options, [&](Communicator& world) {
      RankFileSystem fs(result->disk);
      RankedState(kNew).save(fs, world);
    });
    return result;
  };
  for (int victim = 0; victim < kRanks; ++victim) {
    int64_t collective = 1;
    for (bool is_reached = true; is_reached;) {
      std::vector<std::future<std::unique_ptr<Run>>> runs;  // together, since each waits for the lost rank
      constexpr int64_t kTogether = 12;
      for (int64_t i = 0; i < kTogether; ++i) {
        runs.push_back(std::async(std::launch::async, run, victim, collective + i));
      }
      for (auto& future : runs) {
        const auto done = future.get();
        CAPTURE(victim, collective);
        is_reached = done->outcomes[size_t(victim)].code == -1;
        const int64_t step = found_step(done->disk.fs);
        if (is_reached) {
          for (int rank = 0; rank < kRanks; ++rank) {
            const Outcome& outcome = done->outcomes[size_t(rank)];
            if (rank == victim) continue;
            CHECK((outcome.code == 7 || (outcome.code == 0 && step == kNew)));
          }
          CHECK((step == kOld || step == kNew));
          ++collective;
        } else {
          CHECK(step == kNew);
        }
        CHECK(checkpoint_names(done->disk.fs).size() == (step == kNew ? 2 : 1));
      }
    }
    CHECK(collective > 10);
  }
}

TEST_CASE("a rank that is killed at any call of a save loses nothing", "[checkpoint][ranks]") {
  constexpr int kRanks = 3;
  int found_old = 0, found_new = 0;
  for (int victim = 0; victim < kRanks; ++victim) {
    uint64_t call = 0;
    for (bool is_reached = true; is_reached; call += kIsSanitized ? 7 : 1) {
      CAPTURE(victim, call);
      SharedDisk disk;
      save_on(kRanks, disk, RankedState(kOld, 8));
      const std::vector<Outcome> all = outcomes(kRanks, {}, [&](Communicator& world) {
        RankFileSystem fs(disk);
        if (world.rank() == victim) fs.stop_at_call(call);
        RankedState(kNew, 8).save(fs, world);
      });
      is_reached = all[size_t(victim)].code == -1;
      clean_up_checkpoints(disk.fs, kDirectory);
      const auto found = find_newest_good_checkpoint(disk.fs, kDirectory);
      REQUIRE(found.has_value());
      REQUIRE_NOTHROW(RankedState(found->step, 8).require_part(CheckpointReader(disk.fs, found->path), 0, 1));
      ++(found->step == kOld ? found_old : found_new);
      REQUIRE((found->step == kNew || is_reached));
      for (int rank = 0; rank < kRanks; ++rank) {
        if (rank != victim && is_reached && found->step == kOld) REQUIRE(all[size_t(rank)].code == 7);
      }
    }
    CHECK(call > 30);
  }
  CHECK(found_old > (kIsSanitized ? 12 : 90));  // a seventh of the calls
  CHECK(found_new > kRanks);
}

TEST_CASE("a disk that fails one rank fails all, and nothing of the save remains", "[checkpoint][ranks]") {
  constexpr int kRanks = 3;
  const bool is_lasting = GENERATE(true, false);
  for (int victim = 0; victim < kRanks; ++victim) {
    uint64_t call = 0;
    int refused = 0, saved = 0;
    for (bool is_reached = true; is_reached; call += kIsSanitized ? 7 : 1) {
      CAPTURE(is_lasting, victim, call);
      SharedDisk disk;
      save_on(kRanks, disk, RankedState(kOld, 8));
      const std::vector<Outcome> all = outcomes(kRanks, {}, [&](Communicator& world) {
        RankFileSystem fs(disk);
        if (world.rank() == victim) fs.fail_call(call, ENOSPC, is_lasting);
        std::optional<Error> error;
        try {
          RankedState(kNew, 8).save(fs, world);
        } catch (const Error& e) {
          error = e;
        }
        if (world.rank() == victim) is_reached = fs.calls() > call;
        if (error) throw Error(*error);
      });
      for (const Outcome& outcome : all) {
        REQUIRE((outcome.code == all[0].code && outcome.text == all[0].text));
        REQUIRE((outcome.code == 0 || outcome.code == 5));
      }
      ++(all[0].code == 0 ? saved : refused);
      if (all[0].code == 5) REQUIRE_THAT(all[0].text, Catch::Contains("the checkpoint of step 20 is not saved"));
      const bool can_clean_up = victim != 0 || !is_lasting;
      if (can_clean_up) {
        REQUIRE(checkpoint_names(disk.fs) ==
                (all[0].code == 0 ? std::vector<std::string>{kOldName, kNewName} : std::vector<std::string>{kOldName}));
      }
      clean_up_checkpoints(disk.fs, kDirectory);
      const int64_t step = find_newest_good_checkpoint(disk.fs, kDirectory)->step;
      REQUIRE((step == kNew || all[0].code == 5));
      if (step == kOld) {  // the next save succeeds
        save_on(kRanks, disk, RankedState(kNew, 8));
        REQUIRE(find_newest_good_checkpoint(disk.fs, kDirectory)->step == kNew);
      }
    }
    CHECK(refused > (is_lasting ? 30 : 10) / (kIsSanitized ? 7 : 1));
    CHECK(saved > 0);
  }
}

TEST_CASE("the error of one rank names it on every rank", "[checkpoint][ranks]") {
  SharedDisk disk;
  const std::vector<Outcome> all = outcomes(3, {}, [&](Communicator& world) {
    RankFileSystem fs(disk);
    if (world.rank() == 2) fs.fail_call(4, ENOSPC, true);
    RankedState(kNew).save(fs, world);
  });
  for (const Outcome& outcome : all) {
    CHECK(outcome.code == 5);
    CHECK_THAT(outcome.text, Catch::Contains("not saved: rank 2 (host ") &&
                                 Catch::Contains("No space left on device") && Catch::Contains("are free"));
  }
}

TEST_CASE("what ranks give together must be each tensor once", "[checkpoint][ranks]") {
  SharedDisk disk;
  const float x[4] = {};
  const auto refused = [&](const std::function<void(int, TensorPiece&, CheckpointInfo&)>& change, int code,
                           const std::string& says) {
    const std::vector<Outcome> all = outcomes(3, {}, [&](Communicator& world) {
      RankFileSystem fs(disk);
      CheckpointInfo info{.run_id = "r", .code_version = ""};
      TensorPiece piece{"t", TensorGroup::kOptim, StoredDType::kF32, {3, 4}, x, Box{{world.rank(), 0}, {1, 4}}};
      change(world.rank(), piece, info);
      save_checkpoint(fs, kDirectory, info, {piece}, {}, {}, world);
    });
    for (const Outcome& outcome : all) {
      CHECK(outcome.code == code);
      CHECK_THAT(outcome.text, Catch::Contains(says));
    }
    if (disk.fs.exists(kDirectory)) CHECK(disk.fs.list(kDirectory).empty());
  };
  refused(
      [](int, TensorPiece& piece, auto&) {
        piece.box = Box{{0, 0}, {1, 4}};
      },
      2, "rank 0 gives elements [0:1, 0:4] of tensor t, and rank 1 elements [0:1, 0:4] of tensor t");
  refused([](int, TensorPiece& piece, auto&) { piece.box = {}, piece.shape = {4}; }, 2, "some of it is there twice");
  refused(
      [](int rank, TensorPiece& piece, auto&) {
        if (rank == 1) piece.name = "u";
      },
      5, "has pieces with 8 of the 12 elements of tensor t");
  refused(
      [](int rank, TensorPiece& piece, auto&) {
        if (rank == 2) piece.dtype = StoredDType::kI32;
      },
      5, "different dtypes");
  refused(
      [](int rank, TensorPiece& piece, auto&) {
        if (rank == 2) piece.name = "a/b";
      },
      2, "rank 2 (host ");
  refused(
      [](int rank, auto&, CheckpointInfo& info) {
        if (rank == 2) info.step = 7;
      },
      2, "rank 2 saves step 7 of run r into /run/checkpoints/step-00000007, and rank 0 step 0 of run r");
}

TEST_CASE("a rank that does not see the directory of the others is named", "[checkpoint][ranks]") {
  SharedDisk disk, other;
  save_on(2, disk, RankedState(kOld));
  save_on(2, other, RankedState(kOld));  // a copy, on a disk of its own
  const bool is_saving = GENERATE(true, false);
  const std::vector<Outcome> all = outcomes(3, {}, [&](Communicator& world) {
    RankFileSystem fs(world.rank() == 1 ? other : disk);
    if (is_saving) {
      RankedState(kNew).save(fs, world);
    } else {
      require_shared_directory(fs, kDirectory, world);
    }
  });
  for (const Outcome& outcome : all) {
    CHECK(outcome.code == 5);
    CHECK_THAT(outcome.text, Catch::Contains("rank 1 (host ") && Catch::Contains("does not see the directory"));
  }
  CHECK(checkpoint_names(disk.fs) == std::vector<std::string>{kOldName});
  CHECK(checkpoint_names(other.fs) == std::vector<std::string>{kOldName});
}

TEST_CASE("shards of two ranks that were swapped are refused", "[checkpoint][ranks]") {
  SharedDisk disk;
  save_on(2, disk, RankedState(kOld));
  save_on(2, disk, RankedState(kNew));
  const std::string path = join_path(kDirectory, kNewName);
  // The boxes of big.exp_avg, as long on one rank as on the other.
  const auto shard_of = [&](int64_t first_row) {
    const Manifest manifest = CheckpointReader(disk.fs, path).manifest();
    for (const ManifestPiece& piece : manifest.pieces) {
      if (piece.name == "big.exp_avg" && piece.box.start[0] == first_row) {
        return join_path(path, manifest.files[piece.file].name);
      }
    }
    return std::string();
  };
  const std::string one = shard_of(0), two = shard_of(150);
  REQUIRE(disk.fs.content(one).size() == disk.fs.content(two).size());
  std::swap(disk.fs.content(one), disk.fs.content(two));
  CHECK(verify_checkpoint(disk.fs, path).size() >= 2);
  run_fine(2, [&](Communicator& world) {
    RankFileSystem fs(disk);
    const CheckpointReader reader(fs, path);
    std::vector<int64_t> values(150 * 101);
    const auto error = [&]() -> std::string {
      try {
        reader.read_tensor("big.exp_avg", Box{{150 * world.rank(), 0}, {150, 101}}, values.data());
      } catch (const Error& e) {
        return e.block();
      }
      return "";
    }();
    require(error.find("does not match its checksum") != std::string::npos, "rank {} read it", world.rank());
    // All ranks go back to the one before.
    require(find_newest_good_checkpoint(fs, kDirectory, world)->step == kOld, "rank {}", world.rank());
  });
  CHECK(checkpoint_names(disk.fs) == std::vector<std::string>{"bad-" + kNewName, kOldName});
  CHECK_THAT(disk.fs.read_text(join_path(kDirectory, "bad-" + kNewName + "/reason.txt")),
             Catch::Contains("tensor big.exp_avg"));
}

TEST_CASE("a rank that cannot read a good checkpoint does not condemn it", "[checkpoint][ranks]") {
  SharedDisk disk;
  save_on(3, disk, RankedState(kOld));
  int failed = 0;
  for (uint64_t call = 4; call < 30; ++call) {
    CAPTURE(call);
    const std::vector<Outcome> all = outcomes(3, {}, [&](Communicator& world) {
      RankFileSystem fs(disk);
      if (world.rank() == 2) fs.fail_call(call, EIO, true);
      find_newest_good_checkpoint(fs, kDirectory, world);
    });
    for (const Outcome& outcome : all) {
      CHECK(outcome.text == all[0].text);
      if (outcome.code == 0) continue;
      CHECK(outcome.code == 5);
      CHECK_THAT(outcome.text, Catch::Contains("rank 2 (host ") && Catch::Contains("where rank 0 finds it good"));
    }
    failed += all[0].code == 5;
    REQUIRE(checkpoint_names(disk.fs) == std::vector<std::string>{kOldName});
  }
  CHECK(failed > 10);
}

TEST_CASE("ranks share the reading of a checkpoint", "[checkpoint][ranks]") {
  SharedDisk disk;
  save_on(4, disk, RankedState(kNew, 3000));
  const std::string path = join_path(kDirectory, kNewName);
  RankFileSystem alone(disk);
  REQUIRE(verify_checkpoint(alone, path).empty());
  std::vector<uint64_t> calls(4);
  run_fine(4, [&](Communicator& world) {
    RankFileSystem fs(disk);
    CheckpointReader(fs, path);
    const uint64_t opening = fs.calls();
    require(verify_checkpoint(fs, path, world).empty(), "damage");
    calls[size_t(world.rank())] = fs.calls() - opening;
  });
  for (const uint64_t of_rank : calls) {
    CHECK(of_rank > alone.calls() / 8);
    CHECK(of_rank < alone.calls() / 2);
  }
}

TEST_CASE("a rank reads back what others wrote", "[checkpoint][ranks]") {
  const int ranks = GENERATE(2, 3, 4);
  SharedDisk disk;
  std::vector<std::set<std::string>> read(static_cast<size_t>(ranks)), written = read;
  run_fine(ranks, [&](Communicator& world) {
    RankFileSystem fs(disk);
    RankedState(kNew).save(fs, world);
    // The rank that checks the index looks at the header of every file of the model.
    const auto shards = [](std::set<std::string> paths) {
      std::erase_if(paths, [](const std::string& path) { return path.find("/optim-") == std::string::npos; });
      return paths;
    };
    read[size_t(world.rank())] = shards(fs.opened());
    written[size_t(world.rank())] = shards(fs.created());
  });
  std::set<std::string> read_by_any;
  size_t files = 0;
  for (size_t rank = 0; rank < size_t(ranks); ++rank) {
    files += written[rank].size();
    for (const std::string& path : read[rank]) {
      CHECK_FALSE(written[rank].contains(path));
      CHECK(read_by_any.insert(path).second);
    }
  }
  CHECK(files == size_t(2 * ranks));
  CHECK(read_by_any.size() == files);
}

TEST_CASE("old checkpoints are removed once, for all ranks", "[checkpoint][ranks]") {
  SharedDisk disk;
  for (const int64_t step : {10, 20, 30}) save_on(2, disk, RankedState(step));
  const auto remove = [&](int64_t keep_last, int expected) {
    run_fine(3, [&](Communicator& world) {
      RankFileSystem fs(disk);
      const int removed = remove_old_checkpoints(fs, kDirectory, keep_last, world);
      require(removed == expected, "removed {}", removed);
    });
  };
  remove(0, 0);
  remove(3, 0);
  remove(2, 1);
  const std::string newest = join_path(kDirectory, checkpoint_name(30));
  disk.fs.content(join_path(newest, "config.yaml"))[0] ^= 1;
  remove(1, 0);
  disk.fs.content(join_path(newest, "config.yaml"))[0] ^= 1;
  remove(1, 1);
  CHECK(checkpoint_names(disk.fs) == std::vector<std::string>{checkpoint_name(30)});
}

TEST_CASE("ranks save to a real disk", "[checkpoint][ranks]") {
  const TemporaryDirectory directory;
  FileSystem& fs = real_file_system();
  const std::string checkpoints = directory / "run/checkpoints";
  const RankedState state(kNew);
  run_fine(4, [&](Communicator& world) {
    const std::string path = state.save(fs, world, checkpoints);
    require(path == join_path(checkpoints, kNewName), "{}", path);
    state.require_part(CheckpointReader(fs, path), world.rank(), world.size());
  });
  CHECK(fs.list(checkpoints) == std::vector<std::string>{"LATEST", kNewName});
}

TEST_CASE("reading a box takes little memory beside the box", "[checkpoint][ranks]") {
  const TemporaryDirectory directory;
  FileSystem& fs = real_file_system();
  constexpr int64_t kRows = 1 << 14, kCols = 1 << 10;  // 64 MiB of float32, in 64 pieces
  const std::string path = [&] {
    std::vector<float> values(size_t(kRows * kCols));
    for (size_t i = 0; i < values.size(); ++i) values[i] = float(i);
    std::vector<TensorPiece> pieces;
    constexpr int64_t kPieces = 64, kEach = kRows / kPieces;
    for (int64_t i = 0; i < kPieces; ++i) {
      pieces.push_back({"t",
                        TensorGroup::kOptim,
                        StoredDType::kF32,
                        {kRows, kCols},
                        &values[size_t(i * kEach * kCols)],
                        Box{{i * kEach, 0}, {kEach, kCols}}});
    }
    return save_checkpoint(fs, directory.path(), {.run_id = "r", .code_version = ""}, pieces, {});
  }();
  const Box box{{kRows / 4 + 3, 0}, {kRows / 2, kCols}};
  std::vector<float> read(size_t(kRows / 2 * kCols));
  std::fill(read.begin(), read.end(), 1.0f);
  const Cost cost;
  const CheckpointReader reader(fs, path);
  reader.read_tensor("t", box, read.data());
  CHECK(cost.is_within(/*bytes=*/uint64_t(2) << 20, /*seconds=*/60));
  CHECK(read.front() == float((kRows / 4 + 3) * kCols));
  CHECK(read.back() == float((kRows / 4 + 3 + kRows / 2) * kCols - 1));
}

}  // namespace octet::test
