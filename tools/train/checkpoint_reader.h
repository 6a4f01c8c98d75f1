// Reads a checkpoint directory, by one thread. No byte leaves it unchecked: every 64 KiB of a tensor is compared with
// its checksum before it is copied out, and a piece that is read whole is compared with its own as well. Memory beside
// the caller's is one manifest, one block and the checksums of 512 MiB of blocks, 64 KiB.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/file_system.h"
#include "parallel/communicator.h"
#include "tools/train/checkpoint_manifest.h"

namespace octet {

class CheckpointReader {
 public:
  using Tensor = ManifestPieces::Tensor;  // its name lives as long as the reader

  // Checks the manifest, and that each file is there with its size. Errors about what is in the directory are
  // kCheckpoint; those of the disk are kStorage.
  CheckpointReader(FileSystem& fs, const std::string& path);

  const std::string& path() const { return path_; }
  const CheckpointInfo& info() const { return manifest_.info; }
  const Manifest& manifest() const { return manifest_; }
  // In the order of their names.
  size_t num_tensors() const { return manifest_.pieces.num_tensors(); }
  Tensor tensor(size_t index) const { return manifest_.pieces.tensor(index); }
  std::optional<Tensor> find(std::string_view name) const;
  uint64_t bytes() const;  // of all files

  // Copies a box of a tensor, rows contiguous, into `out`. The whole tensor without a box.
  void read_tensor(std::string_view name, void* out) const;
  void read_tensor(std::string_view name, const Box& box, void* out) const;

  bool has_text_file(std::string_view name) const;
  std::string text_file(std::string_view name) const;

 private:
  friend class CheckpointVerifier;
  size_t place_of(std::string_view name) const;  // of a tensor that must be there
  const ManifestFile* find_file(std::string_view name) const;
  std::string read_small_file(const ManifestFile& file) const;
  void read_piece(const ManifestPiece& piece, const Box& box, void* out) const;
  [[noreturn]] void refuse_block(const ManifestPiece& piece, uint64_t block) const;
  // Opened when it is first read. At most kMostOpenFiles are open, so that this closes others.
  const ReadableFile& file(size_t index) const;
  void check_blocks_file();
  uint64_t wanted_checksum(const ManifestPiece& piece, uint64_t block) const;

  static constexpr size_t kMostOpenFiles = 64;
  FileSystem* fs_;
  std::string path_;
  Manifest manifest_;
  mutable std::map<size_t, std::unique_ptr<ReadableFile>> files_;  // by index into manifest_.files
  std::unique_ptr<ReadableFile> blocks_file_;
  mutable std::vector<uint64_t> blocks_;  // those of blocks.xxh3 from first_block_
  mutable uint64_t first_block_ = 0;
  uint64_t num_blocks_ = 0;
};

struct CheckpointDamage {
  std::string file;    // its name in the directory
  std::string tensor;  // empty where it lies outside of tensors
  int64_t block = -1;  // number of the 64 KiB block of the tensor's piece; -1: not one block
  std::string what;    // a sentence with all of these
};

// Reads every byte. Empty where all of it is as it was written.
std::vector<CheckpointDamage> verify_checkpoint(FileSystem& fs, const std::string& path);
// The same with the work shared: each file is read by one rank, and by another than its writer where `writers` has one.
// The result is the same on every rank. Throws kStorage where a rank finds damage that rank 0 does not find.
std::vector<CheckpointDamage> verify_checkpoint(FileSystem& fs, const std::string& path, Communicator& world,
                                                const std::map<std::string, int>& writers = {});

}  // namespace octet
