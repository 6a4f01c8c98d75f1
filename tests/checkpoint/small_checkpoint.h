// A small state of a training run, the same for the same step, and checks of what is read back.
#pragma once

#include <catch2/catch.hpp>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "core/base/fault_file_system.h"
#include "core/base/random.h"
#include "tools/train/checkpoint_store.h"

namespace octet::test {

inline const std::string kDirectory = "/run/checkpoints";

class SmallState {
 public:
  explicit SmallState(int64_t step, const std::string& run_id = "run-1") {
    info_.run_id = run_id;
    info_.step = step;
    info_.tokens = step * 1000;
    info_.code_version = "0.1.0";
    info_.layout.set("ranks", 1);
    info_.rng.set("seed", 7).set("step", step);
    info_.data_cursor.set("sample", step * 8).set("epoch", 0);
    info_.meta.set("loss", 1.5);
    add("model.embed.weight", TensorGroup::kModel, StoredDType::kBF16, {8, 16});
    add("model.layers.0.mlp.experts.0.up.weight", TensorGroup::kModel, StoredDType::kF8E4M3, {12, 8});
    add("model.layers.0.mlp.experts.1.up.weight", TensorGroup::kModel, StoredDType::kF8E4M3, {12, 8});
    add("model.norm.weight", TensorGroup::kModel, StoredDType::kF32, {16});
    add("model.embed.weight.master", TensorGroup::kOptim, StoredDType::kF32, {8, 16});
    add("step_count", TensorGroup::kState, StoredDType::kI64, {});
    // A tensor in two pieces, as two ranks would write it.
    const Box upper{{0, 0, 0, 0}, {5, 6, 0, 0}}, lower{{5, 0, 0, 0}, {2, 6, 0, 0}};
    add("experts.bias", TensorGroup::kState, StoredDType::kF32, {7, 6}, upper);
    add("experts.bias", TensorGroup::kState, StoredDType::kF32, {7, 6}, lower);
    text_files_ = {{"config.yaml", "model: {layers: 2}\n"},
                   {"tokenizer.json", "{\"step\": " + std::to_string(step) + "}"}};
  }

  const CheckpointInfo& info() const { return info_; }
  const std::vector<TextFile>& text_files() const { return text_files_; }
  std::vector<TensorPiece> pieces() const {
    std::vector<TensorPiece> pieces = pieces_;
    for (size_t i = 0; i < pieces.size(); ++i) pieces[i].data = data_[i].data();
    return pieces;
  }
  std::string save(FileSystem& fs, uint64_t shard_bytes = 400) const {
    return save_checkpoint(fs, kDirectory, info_, pieces(), text_files_, {.shard_bytes = shard_bytes});
  }
  // The checkpoint holds exactly this state.
  bool is_in(const CheckpointReader& reader) const {
    if (reader.info().step != info_.step || reader.info().run_id != info_.run_id) return false;
    if (reader.info().rng != info_.rng || reader.info().data_cursor != info_.data_cursor) return false;
    for (const TextFile& file : text_files_) {
      if (reader.text_file(file.name) != file.content) return false;
    }
    for (size_t i = 0; i < pieces_.size(); ++i) {
      std::string read(data_[i].size(), '\0');
      reader.read_tensor(pieces_[i].name, pieces_[i].box ? *pieces_[i].box : whole_box(pieces_[i].shape), read.data());
      if (read != data_[i]) return false;
    }
    return true;
  }

 private:
  void add(const std::string& name, TensorGroup group, StoredDType dtype, const Shape& shape,
           const std::optional<Box>& box = {}) {
    const int64_t elements = box ? num_elements(*box, shape.rank()) : shape.num_elements();
    std::string data(size_t(elements * size_of(dtype)), '\0');
    const RandomStream random(uint64_t(info_.step), name + info_.run_id + std::to_string(pieces_.size()));
    for (size_t i = 0; i < data.size(); ++i) data[i] = char(random.bits(i) & 0xff);
    pieces_.push_back({.name = name, .group = group, .dtype = dtype, .shape = shape, .data = nullptr, .box = box});
    data_.push_back(std::move(data));
  }

  CheckpointInfo info_;
  std::vector<TensorPiece> pieces_;
  std::vector<std::string> data_;
  std::vector<TextFile> text_files_;
};

// What a new process does at its start: the step it goes on from, -1 where there is no checkpoint. The state there must
// be exactly that of its step, and nothing of an interrupted save may be left.
inline int64_t recovered_step(FileSystem& fs) {
  clean_up_checkpoints(fs, kDirectory);
  const auto found = find_newest_good_checkpoint(fs, kDirectory);
  if (!found) return -1;
  REQUIRE(SmallState(found->step).is_in(CheckpointReader(fs, found->path)));
  for (const std::string& name : fs.list(kDirectory)) REQUIRE((name[0] != '.' || name == ".LATEST.tmp"));
  return found->step;
}

}  // namespace octet::test
