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

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/file_system.h"
#include "core/io/json.h"
#include "core/io/safetensors_index.h"
#include "tools/train/manifest_pieces.h"

namespace octet {

// Readers accept versions from the oldest to the newest; writers write the newest.
inline constexpr int64_t kOldestCheckpointFormat = 1, kNewestCheckpointFormat = 1;

inline constexpr std::string_view kManifestName = "manifest.json";
inline constexpr std::string_view kBlocksName = "blocks.xxh3";
inline constexpr std::string_view kModelIndexName = kSafetensorsIndexName;

// "step-00000120"; and the step of such a name, -1 for any other.
std::string checkpoint_name(int64_t step);
int64_t step_of_checkpoint_name(std::string_view name);

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

struct Manifest {
  int64_t format_version = kNewestCheckpointFormat;
  CheckpointInfo info;
  std::vector<ManifestFile> files;
  ManifestPieces pieces;  // the pieces of one tensor tile it
};

// Gives the text away in pieces of about 64 KiB.
void write_manifest(const Manifest& manifest, const std::function<void(std::string_view)>& append);
// Checks all that can be checked without the other files, `path` being the name for errors, which are kCheckpoint. Of
// the file no more than 64 KiB is in memory at a time.
Manifest read_manifest(const ReadableFile& file, const std::string& path);
Manifest parse_manifest(std::string_view text, const std::string& path);
// Throws kCheckpoint where pieces of one tensor overlap or leave out some of it. Sorts the tensors.
void require_tiling(Manifest& manifest, const std::string& path);

// What one rank adds to a manifest, its files and pieces, in texts of at most kPiecesOfAPart pieces; and one of these
// added to a manifest of others. `from` names the rank in errors.
inline constexpr size_t kPiecesOfAPart = 4096;
size_t num_manifest_parts(const Manifest& part);
std::string manifest_part_text(const Manifest& part, size_t index);
void append_manifest_part(Manifest& manifest, std::string_view text, const std::string& from);

// What a checksum starts with.
std::string binding_of_file(const CheckpointInfo& info, std::string_view name);
std::string binding_of_piece(const CheckpointInfo& info, const ManifestPiece& piece);
// Of block number `block` of a piece, whose binding's seed comes from block_seed.
uint64_t block_seed(std::string_view binding);
uint64_t block_checksum(const void* from, uint64_t bytes, uint64_t seed, uint64_t block);

}  // namespace octet
