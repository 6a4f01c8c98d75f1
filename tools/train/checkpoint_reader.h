// Reads a checkpoint directory. No byte leaves it unchecked: every 64 KiB of a tensor is compared with its checksum
// before it is copied out, and a piece that is read whole is compared with its own as well. Memory beside the caller's
// is one manifest and one block.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/base/file_system.h"
#include "tools/train/checkpoint_manifest.h"

namespace octet {

class CheckpointReader {
 public:
  struct Tensor {
    std::string name;
    TensorGroup group;
    StoredDType dtype;
    Shape shape;
  };

  // Checks the manifest, and that each file is there with its size. Errors about what is in the directory are
  // kCheckpoint; those of the disk are kStorage.
  CheckpointReader(FileSystem& fs, const std::string& path);

  const std::string& path() const { return path_; }
  const CheckpointInfo& info() const { return manifest_.info; }
  const Manifest& manifest() const { return manifest_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }  // by name
  const Tensor* find(std::string_view name) const;
  uint64_t bytes() const;  // of all files

  // Copies a box of a tensor, rows contiguous, into `out`. The whole tensor without a box.
  void read_tensor(std::string_view name, void* out) const;
  void read_tensor(std::string_view name, const Box& box, void* out) const;

  bool has_text_file(std::string_view name) const;
  std::string text_file(std::string_view name) const;

 private:
  friend class CheckpointVerifier;
  const ManifestFile* find_file(std::string_view name) const;
  std::string read_small_file(const ManifestFile& file) const;
  void read_piece(const ManifestPiece& piece, const Box& box, void* out) const;
  [[noreturn]] void refuse_block(const ManifestPiece& piece, uint64_t block) const;

  FileSystem* fs_;
  std::string path_;
  Manifest manifest_;
  std::vector<std::unique_ptr<ReadableFile>> files_;  // as manifest_.files; null for those that hold no tensor
  std::vector<uint64_t> blocks_;
  std::vector<Tensor> tensors_;
  std::vector<std::vector<uint32_t>> pieces_of_;  // as tensors_
};

struct CheckpointDamage {
  std::string file;    // its name in the directory
  std::string tensor;  // empty where it lies outside of tensors
  int64_t block = -1;  // number of the 64 KiB block of the tensor's piece; -1: not one block
  std::string what;    // a sentence with all of these
};

// Reads every byte. Empty where all of it is as it was written.
std::vector<CheckpointDamage> verify_checkpoint(FileSystem& fs, const std::string& path);

}  // namespace octet
