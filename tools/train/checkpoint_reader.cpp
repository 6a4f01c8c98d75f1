#include "tools/train/checkpoint_reader.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <string>

#include "core/io/safetensors_index.h"
#include "parallel/agreement.h"
#include "parallel/self_communicator.h"

namespace octet {
namespace {

constexpr std::string_view kFix =
    "octet train goes on from an older checkpoint by itself; restore this one from a copy if it must be this one";

[[noreturn]] void refuse(const std::string& path, std::string what) {
  fail(ErrorKind::kCheckpoint, {.what = std::move(what),
                                .where = path,
                                .why = "a damaged value would train on unseen",
                                .fix = std::string(kFix)});
}

// A missing or strange file is damage to the checkpoint, not a fault of the disk.
std::unique_ptr<ReadableFile> open_part(FileSystem& fs, const std::string& path) {
  try {
    return fs.open(path);
  } catch (const Error& error) {
    refuse(path, error.report().what);
  }
}

void require_size(const std::string& path, uint64_t bytes, uint64_t wanted) {
  if (bytes != wanted) refuse(path, fmt::format("{} has {} bytes; wanted {}", path, bytes, wanted));
}

}  // namespace

CheckpointReader::CheckpointReader(FileSystem& fs, const std::string& path) : fs_(&fs), path_(path) {
  const std::string manifest_path = join_path(path_, kManifestName);
  manifest_ = read_manifest(*open_part(fs, manifest_path), manifest_path);
  const int64_t named = step_of_checkpoint_name(file_name_of(path_));
  if (named >= 0 && named != manifest_.info.step) {
    refuse(manifest_path, fmt::format("{} is of step {}; its directory is named for step {}", manifest_path,
                                      manifest_.info.step, named));
  }
  for (const ManifestFile& file : manifest_.files) {
    const std::string file_path = join_path(path_, file.name);
    FileInfo info;
    try {
      info = fs.info(file_path);
    } catch (const Error& error) {
      refuse(file_path, error.report().what);
    }
    if (!info.is_regular) refuse(file_path, fmt::format("{} is no regular file", file_path));
    require_size(file_path, info.size, file.bytes);
  }
  check_blocks_file();
}

std::optional<CheckpointReader::Tensor> CheckpointReader::find(std::string_view name) const {
  const auto place = manifest_.pieces.find(name);
  if (!place) return std::nullopt;
  return manifest_.pieces.tensor(*place);
}

size_t CheckpointReader::place_of(std::string_view name) const {
  const auto place = manifest_.pieces.find(name);
  if (!place) refuse(path_, fmt::format("the checkpoint {} has no tensor {}", path_, name));
  return *place;
}

uint64_t CheckpointReader::bytes() const {
  uint64_t sum = 0;
  for (const ManifestFile& file : manifest_.files) sum += file.bytes;
  return sum;
}

const ManifestFile* CheckpointReader::find_file(std::string_view name) const {
  for (const ManifestFile& file : manifest_.files) {
    if (file.name == name) return &file;
  }
  return nullptr;
}

const ReadableFile& CheckpointReader::file(size_t index) const {
  const auto at = files_.find(index);
  if (at != files_.end()) return *at->second;
  const std::string file_path = join_path(path_, manifest_.files[index].name);
  auto opened = open_part(*fs_, file_path);
  require_size(file_path, opened->size(), manifest_.files[index].bytes);
  if (files_.size() == kMostOpenFiles) files_.clear();
  return *(files_[index] = std::move(opened));
}

void CheckpointReader::check_blocks_file() {
  const ManifestFile& entry = *find_file(kBlocksName);
  const std::string file_path = join_path(path_, entry.name);
  blocks_file_ = open_part(*fs_, file_path);
  require_size(file_path, blocks_file_->size(), entry.bytes);
  num_blocks_ = entry.bytes / sizeof(uint64_t);
  Checksum checksum(binding_of_file(info(), entry.name));
  std::vector<char> buffer(std::min(entry.bytes, kBlockBytes));
  for (uint64_t at = 0; at < entry.bytes; at += kBlockBytes) {
    const uint64_t bytes = std::min(kBlockBytes, entry.bytes - at);
    blocks_file_->read_at(at, buffer.data(), bytes);
    checksum.add(buffer.data(), bytes);
  }
  if (checksum.hex() != entry.checksum) refuse(file_path, fmt::format("{} does not match its checksum", file_path));
}

// A checksum that changed since check_blocks_file does not match its block either.
uint64_t CheckpointReader::wanted_checksum(const ManifestPiece& piece, uint64_t block) const {
  const uint64_t index = piece.first_block + block;
  if (index < first_block_ || index - first_block_ >= blocks_.size()) {
    std::vector<uint64_t> read(std::min(kBlockBytes / sizeof(uint64_t), num_blocks_ - index));
    blocks_file_->read_at(index * sizeof(uint64_t), read.data(), read.size() * sizeof(uint64_t));
    blocks_ = std::move(read);
    first_block_ = index;
  }
  return blocks_[index - first_block_];
}

std::string CheckpointReader::read_small_file(const ManifestFile& entry) const {
  std::string content(entry.bytes, '\0');
  file(size_t(&entry - manifest_.files.data())).read_at(0, content.data(), content.size());
  Checksum checksum(binding_of_file(info(), entry.name));
  checksum.add(content.data(), content.size());
  if (checksum.hex() != entry.checksum) {
    const std::string file_path = join_path(path_, entry.name);
    refuse(file_path, fmt::format("{} does not match its checksum", file_path));
  }
  return content;
}

bool CheckpointReader::has_text_file(std::string_view name) const { return find_file(name) != nullptr; }

std::string CheckpointReader::text_file(std::string_view name) const {
  const ManifestFile* file = find_file(name);
  if (file == nullptr) refuse(path_, fmt::format("the checkpoint {} has no file {}", path_, name));
  return read_small_file(*file);
}

void CheckpointReader::read_tensor(std::string_view name, void* out) const {
  read_tensor(name, whole_box(tensor(place_of(name)).shape), out);
}

void CheckpointReader::read_tensor(std::string_view name, const Box& box, void* out) const {
  const size_t place = place_of(name);
  const Shape shape = tensor(place).shape;
  for (size_t axis = 0; axis < size_t(shape.rank()); ++axis) {
    const int64_t size = shape[int(axis)];
    require(box.extent[axis] > 0 && box.start[axis] >= 0 && box.extent[axis] <= size &&
                box.start[axis] <= size - box.extent[axis],
            "read_tensor: elements {} to {} of axis {} of {} {}; wanted some of it", box.start[axis],
            box.start[axis] + box.extent[axis], axis, name, shape);
  }
  for (const uint32_t piece : manifest_.pieces.pieces_of(place)) read_piece(manifest_.pieces[piece], box, out);
}

void CheckpointReader::refuse_block(const ManifestPiece& piece, uint64_t block) const {
  const std::string file_path = join_path(path_, manifest_.files[piece.file].name);
  refuse(file_path, fmt::format("{}: tensor {}: block {} (bytes {} to {} of the file) does not match its checksum",
                                file_path, piece.name, block, piece.begin + block * kBlockBytes,
                                std::min(piece.begin + (block + 1) * kBlockBytes, piece.end)));
}

void CheckpointReader::read_piece(const ManifestPiece& piece, const Box& box, void* out) const {
  const int rank = piece.shape.rank();
  const int64_t element = size_of(piece.dtype);
  Box part;  // what the piece and the box share
  for (size_t axis = 0; axis < size_t(rank); ++axis) {
    const int64_t begin = std::max(piece.box.start[axis], box.start[axis]);
    const int64_t end = std::min(piece.box.start[axis] + piece.box.extent[axis], box.start[axis] + box.extent[axis]);
    if (begin >= end) return;
    part.start[axis] = begin, part.extent[axis] = end - begin;
  }
  // Rows are runs that are contiguous in the piece and in `out`: the last axis, and those before it as long as what
  // lies inside them is whole in both.
  int row_axis = std::max(rank - 1, 0);
  int64_t row_elements = rank == 0 ? 1 : part.extent[size_t(row_axis)];
  while (row_axis > 0 && part.extent[size_t(row_axis)] == piece.box.extent[size_t(row_axis)] &&
         part.extent[size_t(row_axis)] == box.extent[size_t(row_axis)]) {
    row_elements *= part.extent[size_t(--row_axis)];
  }
  const auto offset_in = [&](const Box& whole, const std::array<int64_t, kMaxRank>& at) {
    int64_t offset = 0;
    for (size_t axis = 0; axis < size_t(rank); ++axis)
      offset = offset * whole.extent[axis] + at[axis] - whole.start[axis];
    return uint64_t(offset * element);
  };

  const ReadableFile& from_file = file(piece.file);
  const std::string binding = binding_of_piece(info(), piece);
  const uint64_t seed = block_seed(binding);
  Checksum checksum(binding);
  std::vector<char> buffer(std::min(kBlockBytes, piece.bytes()));
  uint64_t loaded = ~uint64_t(0), num_loaded = 0;
  const auto load = [&](uint64_t block) {
    const uint64_t begin = block * kBlockBytes, bytes = std::min(kBlockBytes, piece.bytes() - begin);
    from_file.read_at(piece.begin + begin, buffer.data(), bytes);
    if (block_checksum(buffer.data(), bytes, seed, block) != wanted_checksum(piece, block)) refuse_block(piece, block);
    checksum.add(buffer.data(), bytes);
    loaded = block, ++num_loaded;
  };
  std::array<int64_t, kMaxRank> at = part.start;
  for (;;) {
    uint64_t from = offset_in(piece.box, at), to = offset_in(box, at), left = uint64_t(row_elements * element);
    while (left > 0) {
      const uint64_t block = from / kBlockBytes, in_block = from % kBlockBytes;
      if (block != loaded) load(block);
      const uint64_t bytes = std::min(left, kBlockBytes - in_block);
      std::memcpy(static_cast<char*>(out) + to, buffer.data() + in_block, bytes);
      from += bytes, to += bytes, left -= bytes;
    }
    int axis = row_axis - 1;
    while (axis >= 0 && ++at[size_t(axis)] == part.start[size_t(axis)] + part.extent[size_t(axis)]) {
      at[size_t(axis)] = part.start[size_t(axis)];
      --axis;
    }
    if (axis < 0) break;
  }
  if (num_loaded == piece.num_blocks() && checksum.digest() != piece.checksum) {
    const std::string file_path = join_path(path_, manifest_.files[piece.file].name);
    refuse(file_path, fmt::format("{}: tensor {} does not match its checksum", file_path, piece.name));
  }
}

class CheckpointVerifier {
 public:
  CheckpointVerifier(const CheckpointReader& reader, Communicator& world, const std::map<std::string, int>& writers)
      : reader_(reader), world_(world), reader_of_(share(reader.manifest(), world.size(), writers)) {}
  // This rank reads these files, and no others.
  CheckpointVerifier(const CheckpointReader& reader, Communicator& world, const std::set<std::string>& files)
      : reader_(reader), world_(world) {
    for (const ManifestFile& file : reader.manifest().files) {
      reader_of_.push_back(files.contains(file.name) ? world.rank() : -1);
    }
  }

  std::vector<CheckpointDamage> run() {
    const Manifest& manifest = reader_.manifest_;
    std::vector<std::vector<uint32_t>> pieces_in(manifest.files.size());
    for (const uint32_t piece : manifest.pieces.by_place()) pieces_in[manifest.pieces[piece].file].push_back(piece);
    for (size_t i = 0; i < manifest.files.size(); ++i) {
      if (!is_mine(i)) continue;
      try {
        check_file(i, pieces_in[i]);
      } catch (const Error& error) {
        add(manifest.files[i].name, "", -1, error.report().what);
      }
    }
    if (damages_.empty()) check_headers(pieces_in);
    return std::move(damages_);
  }

 private:
  // The rank that reads each file: the largest first, to the rank that has the fewest bytes so far and did not write
  // it.
  static std::vector<int> share(const Manifest& manifest, int ranks, const std::map<std::string, int>& writers) {
    std::vector<size_t> order(manifest.files.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return manifest.files[a].bytes > manifest.files[b].bytes; });
    std::vector<uint64_t> bytes(size_t(ranks), 0);
    std::vector<int> readers(order.size());
    for (const size_t i : order) {
      const auto writer = writers.find(manifest.files[i].name);
      int reader = -1;
      for (int rank = 0; rank < ranks; ++rank) {
        if (ranks > 1 && writer != writers.end() && writer->second == rank) continue;
        if (reader < 0 || bytes[size_t(rank)] < bytes[size_t(reader)]) reader = rank;
      }
      readers[i] = reader;
      bytes[size_t(reader)] += manifest.files[i].bytes;
    }
    return readers;
  }

  bool is_mine(size_t file) const { return reader_of_[file] == world_.rank(); }

  void add(const std::string& file, const std::string& tensor, int64_t block, const std::string& what) {
    damages_.push_back({file, tensor, block, what});
  }

  void check_file(size_t index, const std::vector<uint32_t>& pieces) {
    const ManifestFile& entry = reader_.manifest_.files[index];
    const ReadableFile& file = reader_.file(index);
    const std::string file_path = join_path(reader_.path_, entry.name);
    const size_t damages_before = damages_.size();
    Checksum checksum(binding_of_file(reader_.info(), entry.name));
    uint64_t at = 0;
    const auto pass = [&](uint64_t end) {  // bytes of no tensor
      while (at < end) {
        const uint64_t bytes = std::min(end - at, kBlockBytes);
        file.read_at(at, buffer_.data(), bytes);
        checksum.add(buffer_.data(), bytes);
        at += bytes;
        world_.progress();
      }
    };
    for (const uint32_t number : pieces) {
      const ManifestPiece piece = reader_.manifest_.pieces[number];
      pass(piece.begin);
      const std::string binding = binding_of_piece(reader_.info(), piece);
      const uint64_t seed = block_seed(binding);
      Checksum piece_checksum(binding);
      const size_t before = damages_.size();
      for (uint64_t block = 0; block < piece.num_blocks(); ++block) {
        const uint64_t bytes = std::min(kBlockBytes, piece.end - at);
        file.read_at(at, buffer_.data(), bytes);
        checksum.add(buffer_.data(), bytes);
        piece_checksum.add(buffer_.data(), bytes);
        if (block_checksum(buffer_.data(), bytes, seed, block) != reader_.wanted_checksum(piece, block)) {
          add(entry.name, std::string(piece.name), int64_t(block),
              fmt::format("{}: tensor {}: block {} (bytes {} to {} of the file) does not match its checksum", file_path,
                          piece.name, block, at, at + bytes));
        }
        at += bytes;
        world_.progress();
      }
      if (damages_.size() == before && piece_checksum.digest() != piece.checksum) {
        add(entry.name, std::string(piece.name), -1,
            fmt::format("{}: tensor {} does not match its checksum", file_path, piece.name));
      }
    }
    pass(entry.bytes);
    if (damages_.size() == damages_before && checksum.hex() != entry.checksum) {
      add(entry.name, "", -1,
          fmt::format("{} does not match its checksum{}", file_path,
                      pieces.empty() ? "" : "; its tensors do, so that the damage lies in its header"));
    }
  }

  // The files also stand for themselves: other programs read them without the manifest.
  void check_headers(const std::vector<std::vector<uint32_t>>& pieces_in) {
    const ManifestPieces& pieces = reader_.manifest_.pieces;
    std::string name;
    try {
      for (size_t i = 0; i < pieces_in.size(); ++i) {
        if (pieces_in[i].empty() || !is_mine(i)) continue;
        name = reader_.manifest_.files[i].name;
        const SafetensorsFile file(*reader_.fs_, join_path(reader_.path_, name));
        bool is_same = file.tensors().size() == pieces_in[i].size();
        for (size_t t = 0; is_same && t < pieces_in[i].size(); ++t) {
          const auto& tensor = file.tensors()[t];
          const ManifestPiece piece = pieces[pieces_in[i][t]];
          is_same = tensor.begin == piece.begin && tensor.end == piece.end && tensor.dtype == piece.dtype &&
                    (!piece.is_whole() || (tensor.name == piece.name && tensor.shape == piece.shape));
          world_.progress();
        }
        if (!is_same) refuse(file.path(), fmt::format("{} has other tensors than the manifest says", file.path()));
      }
      name = kModelIndexName;
      const ManifestFile* index = reader_.find_file(kModelIndexName);
      if (index != nullptr && is_mine(size_t(index - reader_.manifest_.files.data()))) check_index();
    } catch (const Error& error) {
      add(name, "", -1, error.report().what);
    }
  }

  // The index is in the order of names, since the saver writes it so.
  void check_index() {
    const ManifestPieces& pieces = reader_.manifest_.pieces;
    const std::string path = join_path(reader_.path_, kModelIndexName);
    const std::vector<uint32_t> wanted = pieces_by_name_in_file(pieces, TensorGroup::kModel);
    size_t count = 0;
    read_safetensors_index(
        *reader_.fs_, path, ErrorKind::kCheckpoint, [&](std::string_view name, std::string_view file) {
          const bool is_more = count < wanted.size();
          const ManifestPiece piece = is_more ? pieces[wanted[count]] : ManifestPiece();
          if (!is_more || name_in_file(piece) != name || reader_.manifest_.files[piece.file].name != file) {
            refuse(path, fmt::format("{} has tensor {} in {}, which the manifest does not say", path, name, file));
          }
          ++count;
          world_.progress();
        });
    if (count < wanted.size()) {
      refuse(path,
             fmt::format("{} lacks tensor {}, which the manifest has", path, name_in_file(pieces[wanted[count]])));
    }
  }

  const CheckpointReader& reader_;
  Communicator& world_;
  std::vector<int> reader_of_;
  std::vector<CheckpointDamage> damages_;
  std::vector<char> buffer_ = std::vector<char>(kBlockBytes);
};

namespace {

// share: the files that this rank reads, as CheckpointVerifier takes them.
std::vector<CheckpointDamage> damages_here(FileSystem& fs, const std::string& path, Communicator& world,
                                           const auto& share) {
  try {
    const CheckpointReader reader(fs, path);
    return CheckpointVerifier(reader, world, share).run();
  } catch (const Error& error) {
    return {{.file = file_name_of(error.report().where.substr(0, error.report().where.find(", byte"))),
             .tensor = "",
             .block = -1,
             .what = error.report().what}};
  }
}

}  // namespace

std::vector<CheckpointDamage> verify_checkpoint(FileSystem& fs, const std::string& path) {
  return verify_checkpoint(fs, path, *make_self_communicator());
}

std::vector<CheckpointDamage> verify_checkpoint(FileSystem& fs, const std::string& path, Communicator& world,
                                                const std::map<std::string, int>& writers) {
  std::vector<std::string> texts;
  for (const CheckpointDamage& damage : damages_here(fs, path, world, writers)) {
    for (const std::string& text : {damage.file, damage.tensor, std::to_string(damage.block), damage.what}) {
      texts.push_back(text);
    }
  }
  std::vector<CheckpointDamage> damages;
  std::set<std::string> said;      // what every rank finds, as a missing file, counts once
  std::set<std::string> suspects;  // files that rank 0 has not read
  int finder = 0;
  const std::vector<std::string> of_ranks = gather_texts(world, pack(texts));
  for (int rank = 0; rank < world.size(); ++rank) {
    const std::vector<std::string> parts = unpack(of_ranks[size_t(rank)]);
    for (size_t i = 0; i + 3 < parts.size(); i += 4) {
      if (!said.insert(parts[i + 3]).second) continue;
      damages.push_back(
          {.file = parts[i], .tensor = parts[i + 1], .block = std::stoll(parts[i + 2]), .what = parts[i + 3]});
      if (rank > 0) suspects.insert(parts[i]), finder = rank;
    }
  }
  // One host that reads badly must not condemn what is good.
  all_or_none(world, [&] {
    if (world.rank() != 0 || suspects.empty() || !of_ranks[0].empty()) return;
    if (!damages_here(fs, path, world, suspects).empty()) return;
    fail(ErrorKind::kStorage,
         {.what = fmt::format("rank {} (host {}) finds {} damaged, where rank 0 finds it good: {}",
                              world.world_rank(finder), world.host(finder), path, damages.back().what),
          .where = path,
          .why = "a host that reads other bytes would train on them",
          .fix = "look at the system log of that host (dmesg), and at how it mounts the directory"});
  });
  return damages;
}

}  // namespace octet
