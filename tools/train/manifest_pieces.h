// The pieces of tensors that a checkpoint stores. There is one for each box of each tensor, so that a model of many
// experts on many ranks has hundreds of thousands: ManifestPieces takes some 150 bytes for each.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/view.h"
#include "core/io/checksum.h"
#include "core/io/safetensors.h"

namespace octet {

inline constexpr uint64_t kBlockBytes = uint64_t(64) << 10;

enum class TensorGroup : uint8_t { kModel, kOptim, kState };
std::string_view name_of(TensorGroup group);  // "model", "optim", "state"

// A part of a tensor: along each axis, `extent` elements from `start`.
struct Box {
  std::array<int64_t, kMaxRank> start{}, extent{};
  bool operator==(const Box&) const = default;
};
Box whole_box(const Shape& shape);
int64_t num_elements(const Box& box, int rank);
Shape shape_of(const std::array<int64_t, kMaxRank>& sizes, int rank);

struct ManifestPiece {
  std::string_view name;  // of the tensor
  TensorGroup group = TensorGroup::kModel;
  StoredDType dtype = StoredDType::kF32;
  Shape shape;  // of the whole tensor
  Box box;
  size_t file = 0;              // index into the manifest's files
  uint64_t begin = 0, end = 0;  // bytes of the file
  Checksum128 checksum{};
  uint64_t first_block = 0;  // where its checksums begin in blocks.xxh3; follows from the order

  uint64_t bytes() const { return end - begin; }
  uint64_t num_blocks() const { return (bytes() + kBlockBytes - 1) / kBlockBytes; }
  bool is_whole() const { return box == whole_box(shape); }
};
// The name of a piece inside a safetensors file: that of the tensor where it is whole, as Hugging Face wants it.
std::string name_in_file(const ManifestPiece& piece);
// "elements [5:7, 0:6] of tensor experts.bias"
std::string box_text(const ManifestPiece& piece);

// A list of pieces, packed. What it gives out is unpacked anew each time, with names that are good until the next add.
class ManifestPieces {
 public:
  struct Iterator {
    const ManifestPieces* pieces;
    size_t index;
    ManifestPiece operator*() const { return (*pieces)[index]; }
    Iterator& operator++() {
      ++index;
      return *this;
    }
    bool operator==(const Iterator&) const = default;
  };

  size_t size() const { return pieces_.size(); }
  bool empty() const { return pieces_.empty(); }
  ManifestPiece operator[](size_t index) const;
  Iterator begin() const { return {this, 0}; }
  Iterator end() const { return {this, size()}; }
  uint64_t num_blocks() const { return num_blocks_; }
  // Indices in the order of files and, in each, of bytes.
  std::vector<uint32_t> by_place() const;

  // Sets first_block itself. False, with nothing added, where the tensor has another dtype, shape or group so far.
  [[nodiscard]] bool add(const ManifestPiece& piece);

  // The tensors, in the order of their names; after the last add.
  struct Tensor {
    std::string_view name;
    TensorGroup group;
    StoredDType dtype;
    Shape shape;
  };
  void sort_tensors();
  size_t num_tensors() const { return tensors_.size(); }
  Tensor tensor(size_t place) const { return unpacked(tensors_[by_name_[place]]); }
  std::optional<size_t> find(std::string_view name) const;  // its place
  // Indices of the tensor's pieces, ascending.
  std::span<const uint32_t> pieces_of(size_t place) const;
  // Indices of two pieces that share elements of one tensor.
  std::optional<std::pair<size_t, size_t>> find_overlap() const;

 private:
  static constexpr uint32_t kWhole = ~uint32_t(0);
  struct PackedTensor {
    uint32_t name_begin, name_bytes;  // in names_
    uint32_t sizes_begin;             // of its shape, in sizes_
    TensorGroup group;
    StoredDType dtype;
    uint8_t rank;
  };
  struct PackedPiece {
    uint32_t tensor, file;
    uint64_t begin, first_block;
    Checksum128 checksum;
    uint32_t box_begin;  // its starts, then its extents, in sizes_; kWhole: the whole tensor
  };

  std::string_view name(const PackedTensor& tensor) const {
    return {names_.data() + tensor.name_begin, tensor.name_bytes};
  }
  Tensor unpacked(const PackedTensor& tensor) const;
  Box box_of(const PackedPiece& piece, const Shape& shape) const;
  std::array<int64_t, kMaxRank> sizes_at(uint32_t begin, int rank) const;
  uint32_t add_sizes(const std::array<int64_t, kMaxRank>& sizes, int rank);
  uint32_t& slot_of(std::string_view name);
  void grow_slots();

  std::vector<char> names_;
  std::vector<int64_t> sizes_;
  std::vector<PackedTensor> tensors_;
  std::vector<PackedPiece> pieces_;
  uint64_t num_blocks_ = 0;
  std::vector<uint32_t> slots_;        // a hash table while pieces are added: 0, or a tensor's number + 1
  std::vector<uint32_t> by_name_;      // numbers of tensors
  std::vector<uint32_t> first_piece_;  // as by_name_, and one more: where its pieces begin in by_tensor_
  std::vector<uint32_t> by_tensor_;    // indices of pieces
};

// Indices of the pieces of one group, in the order of their names in files.
std::vector<uint32_t> pieces_by_name_in_file(const ManifestPieces& pieces, TensorGroup group);

}  // namespace octet
