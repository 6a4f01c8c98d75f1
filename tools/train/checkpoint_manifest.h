// What a checkpoint directory says about itself: manifest.json.
//   step-00001200/
//     model-00001-of-00002.safetensors ...  model.safetensors.index.json   weights under their Hugging Face names
//     optim-*.safetensors  state-*.safetensors                             optimizer state; scales, biases, counters
//     config.yaml, tokenizer.json, ...                                     text files
//     blocks.xxh3                                                          XXH3-64 of each 64 KiB of each tensor piece
//     manifest.json                                                        written last: it makes the directory a
//     checkpoint
// Everything is a box of a named global tensor, so that any layout of ranks can read what any other wrote. A checksum
// covers, before the bytes, the run, the step, and the file's name or the piece's name, dtype, shape and box: a file of
// another step, of another run, or in another's place does not match. XXH3 finds accidents, not attackers.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/view.h"
#include "core/io/json.h"
#include "core/io/safetensors.h"

namespace octet {

// Readers accept versions from the oldest to the newest; writers write the newest.
inline constexpr int64_t kOldestCheckpointFormat = 1, kNewestCheckpointFormat = 1;

inline constexpr std::string_view kManifestName = "manifest.json";
inline constexpr std::string_view kBlocksName = "blocks.xxh3";
inline constexpr std::string_view kModelIndexName = "model.safetensors.index.json";
inline constexpr uint64_t kBlockBytes = uint64_t(64) << 10;

enum class TensorGroup : uint8_t { kModel, kOptim, kState };
std::string_view name_of(TensorGroup group);  // "model", "optim", "state"

// "step-00000120"; and the step of such a name, -1 for any other.
std::string checkpoint_name(int64_t step);
int64_t step_of_checkpoint_name(std::string_view name);

// A part of a tensor: along each axis, `extent` elements from `start`.
struct Box {
  std::array<int64_t, kMaxRank> start{}, extent{};
  bool operator==(const Box&) const = default;
};
Box whole_box(const Shape& shape);
int64_t num_elements(const Box& box, int rank);

struct CheckpointInfo {
  std::string run_id;  // letters, digits, '.', '-', '_', '+'
  int64_t step = 0;    // optimizer steps done
  int64_t tokens = 0;  // tokens trained on
  std::string code_version;
  Json layout = Json::object();       // ranks and axes that wrote it; a hint, since any layout reads it
  Json rng = Json::object();          // keys and counters of random streams
  Json data_cursor = Json::object();  // sample index, epoch, permutation key
  Json meta = Json::object();         // whatever else the program that saves needs back
};

struct ManifestFile {
  std::string name;
  uint64_t bytes = 0;
  std::string checksum;
};

struct ManifestPiece {
  std::string name;
  TensorGroup group = TensorGroup::kModel;
  StoredDType dtype = StoredDType::kF32;
  Shape shape;  // of the whole tensor
  Box box;
  size_t file = 0;              // index into files
  uint64_t begin = 0, end = 0;  // bytes of the file
  std::string checksum;
  uint64_t first_block = 0;  // where its checksums begin in blocks.xxh3; follows from the order

  uint64_t bytes() const { return end - begin; }
  uint64_t num_blocks() const { return (bytes() + kBlockBytes - 1) / kBlockBytes; }
  bool is_whole() const { return box == whole_box(shape); }
};

struct Manifest {
  int64_t format_version = kNewestCheckpointFormat;
  CheckpointInfo info;
  std::vector<ManifestFile> files;
  std::vector<ManifestPiece> pieces;  // the pieces of one tensor tile it
};

std::string manifest_text(const Manifest& manifest);
// Checks all that can be checked without the other files. Errors are kCheckpoint.
Manifest parse_manifest(std::string_view text, const std::string& path);

// What one rank adds to a manifest, its files and pieces, as a text; and added to a manifest of others. `from` names
// the rank in errors.
std::string manifest_part_text(const Manifest& part);
void append_manifest_part(Manifest& manifest, std::string_view text, const std::string& from);
// Indices of two pieces that share elements of one tensor.
std::optional<std::pair<size_t, size_t>> find_overlap(const std::vector<ManifestPiece>& pieces);
// "elements [5:7, 0:6] of tensor experts.bias"
std::string box_text(const ManifestPiece& piece);

// What a checksum starts with.
std::string binding_of_file(const CheckpointInfo& info, std::string_view name);
std::string binding_of_piece(const CheckpointInfo& info, const ManifestPiece& piece);
// Of block number `block` of a piece, whose binding's seed comes from block_seed.
uint64_t block_seed(std::string_view binding);
uint64_t block_checksum(const void* from, uint64_t bytes, uint64_t seed, uint64_t block);

}  // namespace octet
