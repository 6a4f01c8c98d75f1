#include "tools/train/manifest_pieces.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <tuple>

namespace octet {
namespace {

bool is_apart(const Box& a, const Box& b, int rank) {
  for (size_t axis = 0; axis < size_t(rank); ++axis) {
    if (a.start[axis] + a.extent[axis] <= b.start[axis] || b.start[axis] + b.extent[axis] <= a.start[axis]) return true;
  }
  return false;
}

}  // namespace

std::string_view name_of(TensorGroup group) {
  constexpr std::string_view kNames[] = {"model", "optim", "state"};
  return kNames[size_t(group)];
}

Box whole_box(const Shape& shape) {
  Box box;
  for (int axis = 0; axis < shape.rank(); ++axis) box.extent[size_t(axis)] = shape[axis];
  return box;
}

int64_t num_elements(const Box& box, int rank) {
  int64_t n = 1;
  for (int axis = 0; axis < rank; ++axis) n *= box.extent[size_t(axis)];
  return n;
}

Shape shape_of(const std::array<int64_t, kMaxRank>& sizes, int rank) {
  switch (rank) {
    case 0:
      return {};
    case 1:
      return {sizes[0]};
    case 2:
      return {sizes[0], sizes[1]};
    case 3:
      return {sizes[0], sizes[1], sizes[2]};
    default:
      return {sizes[0], sizes[1], sizes[2], sizes[3]};
  }
}

std::string name_in_file(const ManifestPiece& piece) {
  std::string name(piece.name);
  if (piece.is_whole()) return name;
  name += '@';
  for (int axis = 0; axis < piece.shape.rank(); ++axis) {
    const int64_t start = piece.box.start[size_t(axis)];
    fmt::format_to(std::back_inserter(name), "{}{}:{}", axis == 0 ? "" : ",", start,
                   start + piece.box.extent[size_t(axis)]);
  }
  return name;
}

std::string box_text(const ManifestPiece& piece) {
  std::string text = "elements [";
  for (int axis = 0; axis < piece.shape.rank(); ++axis) {
    const int64_t start = piece.box.start[size_t(axis)];
    text += fmt::format("{}{}:{}", axis == 0 ? "" : ", ", start, start + piece.box.extent[size_t(axis)]);
  }
  return text + fmt::format("] of tensor {}", piece.name);
}

std::array<int64_t, kMaxRank> ManifestPieces::sizes_at(uint32_t begin, int rank) const {
  std::array<int64_t, kMaxRank> sizes{};
  std::copy_n(sizes_.begin() + begin, rank, sizes.begin());
  return sizes;
}

uint32_t ManifestPieces::add_sizes(const std::array<int64_t, kMaxRank>& sizes, int rank) {
  const auto begin = uint32_t(sizes_.size());
  sizes_.insert(sizes_.end(), sizes.begin(), sizes.begin() + rank);
  return begin;
}

ManifestPieces::Tensor ManifestPieces::unpacked(const PackedTensor& tensor) const {
  return {.name = name(tensor),
          .group = tensor.group,
          .dtype = tensor.dtype,
          .shape = shape_of(sizes_at(tensor.sizes_begin, tensor.rank), tensor.rank)};
}

Box ManifestPieces::box_of(const PackedPiece& piece, const Shape& shape) const {
  if (piece.box_begin == kWhole) return whole_box(shape);
  const int rank = shape.rank();
  return {.start = sizes_at(piece.box_begin, rank), .extent = sizes_at(piece.box_begin + uint32_t(rank), rank)};
}

ManifestPiece ManifestPieces::operator[](size_t index) const {
  const PackedPiece& packed = pieces_[index];
  const Tensor tensor = unpacked(tensors_[packed.tensor]);
  const Box box = box_of(packed, tensor.shape);
  const auto bytes = uint64_t(octet::num_elements(box, tensor.shape.rank()) * size_of(tensor.dtype));
  return {.name = tensor.name,
          .group = tensor.group,
          .dtype = tensor.dtype,
          .shape = tensor.shape,
          .box = box,
          .file = packed.file,
          .begin = packed.begin,
          .end = packed.begin + bytes,
          .checksum = packed.checksum,
          .first_block = packed.first_block};
}

uint32_t& ManifestPieces::slot_of(std::string_view wanted) {
  const size_t mask = slots_.size() - 1;
  size_t slot = checksum64(wanted.data(), wanted.size(), 0) & mask;
  while (slots_[slot] != 0 && name(tensors_[slots_[slot] - 1]) != wanted) slot = (slot + 1) & mask;
  return slots_[slot];
}

void ManifestPieces::grow_slots() {
  if (slots_.size() > 2 * tensors_.size()) return;
  constexpr size_t kFewest = 64;
  size_t count = kFewest;
  while (count <= 2 * tensors_.size()) count *= 2;
  slots_.assign(count, 0);
  for (size_t i = 0; i < tensors_.size(); ++i) slot_of(name(tensors_[i])) = uint32_t(i) + 1;
}

bool ManifestPieces::add(const ManifestPiece& piece) {
  by_name_.clear(), first_piece_.clear(), by_tensor_.clear();
  grow_slots();
  const int rank = piece.shape.rank();
  uint32_t& slot = slot_of(piece.name);
  if (slot == 0) {
    const auto name_begin = uint32_t(names_.size());
    names_.insert(names_.end(), piece.name.begin(), piece.name.end());
    tensors_.push_back({.name_begin = name_begin,
                        .name_bytes = uint32_t(piece.name.size()),
                        .sizes_begin = add_sizes(whole_box(piece.shape).extent, rank),
                        .group = piece.group,
                        .dtype = piece.dtype,
                        .rank = uint8_t(rank)});
    slot = uint32_t(tensors_.size());
  } else {
    const Tensor known = unpacked(tensors_[slot - 1]);
    if (known.group != piece.group || known.dtype != piece.dtype || known.shape != piece.shape) return false;
  }
  uint32_t box_begin = kWhole;
  if (!piece.is_whole()) {
    box_begin = add_sizes(piece.box.start, rank);
    add_sizes(piece.box.extent, rank);
  }
  pieces_.push_back({.tensor = slot - 1,
                     .file = uint32_t(piece.file),
                     .begin = piece.begin,
                     .first_block = num_blocks_,
                     .checksum = piece.checksum,
                     .box_begin = box_begin});
  num_blocks_ += piece.num_blocks();
  return true;
}

std::vector<uint32_t> ManifestPieces::by_place() const {
  std::vector<uint32_t> order(pieces_.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [this](uint32_t a, uint32_t b) {
    return std::tie(pieces_[a].file, pieces_[a].begin) < std::tie(pieces_[b].file, pieces_[b].begin);
  });
  return order;
}

void ManifestPieces::sort_tensors() {
  slots_ = {};
  by_name_.resize(tensors_.size());
  std::iota(by_name_.begin(), by_name_.end(), 0u);
  std::sort(by_name_.begin(), by_name_.end(),
            [this](uint32_t a, uint32_t b) { return name(tensors_[a]) < name(tensors_[b]); });
  std::vector<uint32_t> place(tensors_.size());
  for (size_t i = 0; i < by_name_.size(); ++i) place[by_name_[i]] = uint32_t(i);
  first_piece_.assign(tensors_.size() + 1, 0);
  for (const PackedPiece& piece : pieces_) ++first_piece_[place[piece.tensor] + 1];
  std::partial_sum(first_piece_.begin(), first_piece_.end(), first_piece_.begin());
  by_tensor_.resize(pieces_.size());
  std::vector<uint32_t> next(first_piece_.begin(), first_piece_.end() - 1);
  for (size_t i = 0; i < pieces_.size(); ++i) by_tensor_[next[place[pieces_[i].tensor]]++] = uint32_t(i);
}

std::optional<size_t> ManifestPieces::find(std::string_view wanted) const {
  const auto at = std::partition_point(by_name_.begin(), by_name_.end(),
                                       [&](uint32_t number) { return name(tensors_[number]) < wanted; });
  if (at == by_name_.end() || name(tensors_[*at]) != wanted) return std::nullopt;
  return size_t(at - by_name_.begin());
}

std::span<const uint32_t> ManifestPieces::pieces_of(size_t place) const {
  return std::span(by_tensor_).subspan(first_piece_[place], first_piece_[place + 1] - first_piece_[place]);
}

std::optional<std::pair<size_t, size_t>> ManifestPieces::find_overlap() const {
  std::vector<Box> boxes;
  for (size_t place = 0; place < num_tensors(); ++place) {
    const std::span<const uint32_t> parts = pieces_of(place);
    const Shape shape = tensor(place).shape;
    boxes.clear();
    for (size_t i = 0; i < parts.size(); ++i) {
      boxes.push_back(box_of(pieces_[parts[i]], shape));
      for (size_t j = 0; j < i; ++j) {
        if (!is_apart(boxes[j], boxes[i], shape.rank())) return std::pair(size_t(parts[j]), size_t(parts[i]));
      }
    }
  }
  return std::nullopt;
}

std::vector<uint32_t> pieces_by_name_in_file(const ManifestPieces& pieces, TensorGroup group) {
  std::vector<uint32_t> order;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].group == group) order.push_back(uint32_t(i));
  }
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    const ManifestPiece one = pieces[a], other = pieces[b];
    if (one.is_whole() && other.is_whole()) return one.name < other.name;
    return name_in_file(one) < name_in_file(other);
  });
  return order;
}

}  // namespace octet
