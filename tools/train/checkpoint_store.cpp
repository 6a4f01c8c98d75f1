#include "tools/train/checkpoint_store.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <tuple>

#include "core/base/log.h"
#include "parallel/agreement.h"
#include "parallel/self_communicator.h"

namespace octet {
namespace {

constexpr std::string_view kTrashPrefix = ".trash-", kTemporaryPrefix = ".step-", kTemporaryMark = ".tmp-";
constexpr std::string_view kLatestName = "LATEST", kReasonName = "reason.txt";
constexpr std::string_view kMarkerName = ".trash-marker";  // of require_shared_directory

bool starts_with(std::string_view text, std::string_view prefix) { return text.substr(0, prefix.size()) == prefix; }

bool is_committed(FileSystem& fs, const std::string& path) {
  const std::string manifest = join_path(path, kManifestName);
  return fs.exists(manifest) && fs.info(manifest).size > 0;
}

// A removal that is interrupted leaves a name that nobody takes for a checkpoint.
void remove_checkpoint(FileSystem& fs, const std::string& directory, const std::string& name) {
  const std::string trash = join_path(directory, std::string(kTrashPrefix) + name);
  fs.remove_tree(trash);
  fs.rename(join_path(directory, name), trash);
  fs.sync_directory(directory);
  fs.remove_tree(trash);
}

// Runs a clean-up after a failure; a second failure must not hide the first.
template <class Call>
void try_to(const char* what, Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    log_warning("cannot {}: {}", what, error.report().what);
  }
}

// "12.3 MiB"
std::string bytes_text(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = double(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) value /= 1024, ++unit;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

void write_file(FileSystem& fs, const std::string& path, std::string_view content) {
  const auto file = fs.create(path);
  file->append(content.data(), content.size());
  file->sync();
}

// A rank that was lost, or makes no progress, ended it; otherwise every rank is in the same place.
bool is_of_peers(const Error& error) {
  return error.kind() == ErrorKind::kCommunication || error.kind() == ErrorKind::kHang;
}

constexpr size_t kGroups = 3;
constexpr TensorGroup kAllGroups[kGroups] = {TensorGroup::kModel, TensorGroup::kOptim, TensorGroup::kState};
// A header of so many tensors is read in little memory.
constexpr size_t kMostTensorsOfAShard = size_t(1) << 14;
// Checksums of blocks go to rank 0 in messages of this size.
constexpr size_t kStreamedBlocks = size_t(1) << 17;

class Saver {
 public:
  Saver(FileSystem& fs, std::string directory, const CheckpointInfo& info, const std::vector<TensorPiece>& pieces,
        const std::vector<TextFile>& text_files, const SaveOptions& options, Communicator& world)
      : fs_(fs),
        directory_(std::move(directory)),
        text_files_(text_files),
        world_(world),
        name_(checkpoint_name(info.step)),
        path_(join_path(directory_, name_)),
        temporary_(
            join_path(directory_, fmt::format("{}{}{}{}", kTemporaryPrefix, info.step, kTemporaryMark, info.run_id))) {
    manifest_.info = info;
    all_or_none(world_, [&] {
      check(pieces);
      plan(pieces, options);
    });
    agree(checkpoint_bytes(pieces, is_first() ? text_files : std::vector<TextFile>()));
  }

  std::string run() {
    try {
      all_or_none(world_, [&] {
        if (is_first()) prepare();
      });
      if (world_.size() > 1) require_shared_directory(fs_, temporary_, world_);
      all_or_none(world_, [&] { write_shards(); });
      vote(world_, is_first() ? collect() : hand_over());
      read_back();
      all_or_none(world_, [&] {
        if (is_first()) commit();
      });
    } catch (const Error& error) {
      if (is_of_peers(error)) throw;
      give_up(error);
    }
    return path_;
  }

 private:
  struct Shard {
    TensorGroup group;
    size_t first = 0, count = 0;  // of pieces_
    uint64_t bytes = 0;
  };

  bool is_first() const { return world_.rank() == 0; }

  void check(const std::vector<TensorPiece>& pieces) const {
    const CheckpointInfo& info = manifest_.info;
    const std::string fault = fault_of_file_name(info.run_id);
    require(fault.empty(), "save_checkpoint: the run id \"{}\" {}", info.run_id, fault);
    require(info.step >= 0 && info.tokens >= 0, "save_checkpoint: step {}, {} tokens; wanted 0 or more", info.step,
            info.tokens);
    for (const TensorPiece& piece : pieces) {
      const std::string fault_of_name = fault_of_tensor_name(piece.name);
      require(fault_of_name.empty(), "save_checkpoint: a tensor is named \"{}\": the name {}", piece.name,
              fault_of_name);
      require(piece.shape.num_elements() > 0, "save_checkpoint: tensor {} is {}; wanted at least one element",
              piece.name, piece.shape);
      require(piece.data != nullptr, "save_checkpoint: tensor {} has no data", piece.name);
    }
    std::set<std::string_view> names;
    for (const TextFile& file : text_files_) {
      const std::string fault_of_name = fault_of_file_name(file.name);
      require(fault_of_name.empty(), "save_checkpoint: a file is named \"{}\": the name {}", file.name, fault_of_name);
      require(names.insert(file.name).second && file.name != kManifestName && file.name != kBlocksName &&
                  file.name != kModelIndexName && file.name.find(".safetensors") == std::string::npos,
              "save_checkpoint: the file {} is given twice, or has a name that the checkpoint itself needs", file.name);
    }
  }

  // Fixes the order of everything, so that the same state always gives the same bytes.
  void plan(const std::vector<TensorPiece>& pieces, const SaveOptions& options) {
    std::vector<const TensorPiece*> order;
    for (const TensorPiece& piece : pieces) order.push_back(&piece);
    const auto box_of = [](const TensorPiece& piece) { return piece.box ? *piece.box : whole_box(piece.shape); };
    // Wide elements first: then each tensor lies at a multiple of its element's size.
    std::sort(order.begin(), order.end(), [&](const TensorPiece* a, const TensorPiece* b) {
      return std::tuple(a->group, -size_of(a->dtype), std::string_view(a->name), box_of(*a).start) <
             std::tuple(b->group, -size_of(b->dtype), std::string_view(b->name), box_of(*b).start);
    });
    for (const TensorPiece* piece : order) {
      const ManifestPiece entry{.name = piece->name,
                                .group = piece->group,
                                .dtype = piece->dtype,
                                .shape = piece->shape,
                                .box = box_of(*piece)};
      const uint64_t bytes = uint64_t(num_elements(entry.box, entry.shape.rank()) * size_of(entry.dtype));
      if (shards_.empty() || shards_.back().group != entry.group ||
          shards_.back().bytes + bytes > options.shard_bytes || shards_.back().count == kMostTensorsOfAShard) {
        shards_.push_back({.group = entry.group, .first = pieces_.size()});
      }
      shards_.back().bytes += bytes;
      ++shards_.back().count;
      pieces_.push_back(entry);
      data_.push_back(static_cast<const char*>(piece->data));
    }
  }

  // Shards are numbered over all ranks, in their order.
  void agree(uint64_t bytes) {
    const std::string mine =
        fmt::format("step {} of run {} into {}", manifest_.info.step, manifest_.info.run_id, path_);
    std::vector<std::string> numbers = {mine, std::to_string(bytes)};
    for (const TensorGroup group : kAllGroups) {
      numbers.push_back(std::to_string(
          std::count_if(shards_.begin(), shards_.end(), [group](const Shard& shard) { return shard.group == group; })));
    }
    std::array<size_t, kGroups> totals{};
    std::vector<std::vector<std::string>> of_ranks;
    for (const std::string& packed : gather_texts(world_, pack(numbers))) of_ranks.push_back(unpack(packed));
    for (size_t rank = 0; rank < of_ranks.size(); ++rank) {
      if (of_ranks[rank][0] != of_ranks[0][0]) {
        fail_together(
            world_, Error(ErrorKind::kArgument,
                          {.what = fmt::format(
                               "save_checkpoint: rank {} saves {}, and rank 0 {}; wanted the same on every rank", rank,
                               of_ranks[rank][0], of_ranks[0][0]),
                           .where = {},
                           .why = {},
                           .fix = {}}));
      }
      needed_bytes_ += std::stoull(of_ranks[rank][1]);
      for (size_t group = 0; group < kGroups; ++group) totals[group] += std::stoull(of_ranks[rank][2 + group]);
    }
    std::array<size_t, kGroups> next{};
    for (size_t rank = 0; rank < of_ranks.size(); ++rank) {
      for (size_t group = 0; group < kGroups; ++group) {
        for (size_t left = std::stoull(of_ranks[rank][2 + group]); left > 0; --left) {
          const std::string name =
              fmt::format("{}-{:05}-of-{:05}.safetensors", name_of(kAllGroups[group]), ++next[group], totals[group]);
          if (int(rank) == world_.rank()) shard_names_.push_back(name);
          writers_[name] = int(rank);
        }
      }
    }
  }

  void prepare() {
    fs_.make_directories(directory_);
    require_free_bytes(fs_, directory_, needed_bytes_);
    if (fs_.exists(path_)) {
      if (is_committed(fs_, path_)) {
        fail(ErrorKind::kStorage, {.what = fmt::format("{} is there already", path_),
                                   .where = path_,
                                   .why = "a checkpoint is never written over",
                                   .fix = "remove or rename it, or save under another step"});
      }
      remove_checkpoint(fs_, directory_, name_);
    }
    fs_.remove_tree(temporary_);
    fs_.make_directory(temporary_);
  }

  void write_shards() {
    for (size_t shard = 0; shard < shards_.size(); ++shard) {
      try {
        write_shard(shard);
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::kStorage) throw;
        // After a failed sync the system counts lost bytes as written, so the second try takes a new file.
        log_warning("{}; writing {} once more", error.report().what, shard_names_[shard]);
        const std::string path = join_path(temporary_, shard_names_[shard]);
        if (fs_.exists(path)) fs_.remove_file(path);
        write_shard(shard);
      }
    }
    if (!is_first() && !shards_.empty()) fs_.sync_directory(temporary_);
    for (const ManifestPiece& piece : pieces_) {
      if (!manifest_.pieces.add(piece)) {
        fail(ErrorKind::kCheckpoint,
             {.what = fmt::format("the pieces of tensor {} have different dtypes, shapes or groups", piece.name),
              .where = {},
              .why = {},
              .fix = {}});
      }
    }
  }

  void write_shard(size_t index) {
    const Shard& shard = shards_[index];
    const std::string& name = shard_names_[index];
    std::vector<SafetensorsWriter::Tensor> tensors;
    for (size_t p = shard.first; p < shard.first + shard.count; ++p) {
      const ManifestPiece& piece = pieces_[p];
      tensors.push_back({name_in_file(piece), piece.dtype, shape_of(piece.box.extent, piece.shape.rank())});
    }
    SafetensorsWriter writer(fs_, join_path(temporary_, name), std::move(tensors), {{"format", "pt"}},
                             binding_of_file(manifest_.info, name));
    blocks_.resize(first_block_of(shard));
    uint64_t at = writer.header_bytes();
    for (size_t p = shard.first; p < shard.first + shard.count; ++p) {
      ManifestPiece& piece = pieces_[p];
      piece.file = index;
      piece.first_block = blocks_.size();
      piece.begin = at;
      piece.end = at + uint64_t(num_elements(piece.box, piece.shape.rank()) * size_of(piece.dtype));
      const std::string binding = binding_of_piece(manifest_.info, piece);
      const uint64_t seed = block_seed(binding);
      Checksum checksum(binding);
      for (uint64_t block = 0; block < piece.num_blocks(); ++block) {
        const char* from = data_[p] + block * kBlockBytes;
        const uint64_t bytes = std::min(kBlockBytes, piece.bytes() - block * kBlockBytes);
        checksum.add(from, bytes);
        blocks_.push_back(block_checksum(from, bytes, seed, block));
        writer.append(from, bytes);
        world_.progress();
      }
      piece.checksum = checksum.digest();
      at = piece.end;
    }
    const uint64_t bytes = writer.file_bytes();
    const std::string checksum = writer.finish();
    if (manifest_.files.size() <= index) manifest_.files.resize(index + 1);
    manifest_.files[index] = {name, bytes, checksum};
  }

  uint64_t first_block_of(const Shard& shard) const {
    if (shard.first == 0) return 0;
    const ManifestPiece& before = pieces_[shard.first - 1];
    return before.first_block + before.num_blocks();
  }

  // Ranks other than 0: sends what rank 0 needs to know of this rank's shards, in the order in which it asks.
  std::optional<Error> hand_over() {
    const std::array<int64_t, 2> counts = {int64_t(num_manifest_parts(manifest_)), int64_t(blocks_.size())};
    world_.send(ConstView(counts.data(), {2}, DType::kInt64), 0, default_stream());
    for (size_t i = 0; i < size_t(counts[0]); ++i) {
      const std::string part = manifest_part_text(manifest_, i);
      const auto bytes = int64_t(part.size());
      world_.send(ConstView(&bytes, {1}, DType::kInt64), 0, default_stream());
      world_.send(ConstView(part.data(), {bytes}, DType::kUInt8), 0, default_stream());
    }
    for (size_t at = 0; at < blocks_.size(); at += kStreamedBlocks) {
      const auto count = int64_t(std::min(kStreamedBlocks, blocks_.size() - at));
      world_.send(ConstView(blocks_.data() + at, {count}, DType::kInt64), 0, default_stream());
    }
    return std::nullopt;
  }

  // Rank 0: writes the rest, with the manifest last. Whatever fails, it takes what the others send.
  std::optional<Error> collect() {
    std::optional<Error> failure;
    const auto unless_failed = [&failure](auto&& call) {
      if (!failure) failure = error_in(call);
    };
    first_pieces_ = {0};
    std::vector<int64_t> blocks_of = {int64_t(blocks_.size())};
    for (int rank = 1; rank < world_.size(); ++rank) {
      std::array<int64_t, 2> counts{};
      world_.receive(View(counts.data(), {2}, DType::kInt64), rank, default_stream());
      blocks_of.push_back(counts[1]);
      first_pieces_.push_back(manifest_.pieces.size());
      for (int64_t i = 0; i < counts[0]; ++i) {
        int64_t bytes = 0;
        world_.receive(View(&bytes, {1}, DType::kInt64), rank, default_stream());
        std::string part(size_t(bytes), '\0');
        world_.receive(View(part.data(), {bytes}, DType::kUInt8), rank, default_stream());
        unless_failed([&] { append_manifest_part(manifest_, part, fmt::format("the part of rank {}", rank)); });
      }
    }
    unless_failed([&] {
      manifest_.pieces.sort_tensors();
      refuse_overlap();
      for (const TextFile& file : text_files_) write_text(file.name, file.content);
      write_index();
    });

    std::unique_ptr<WritableFile> file;
    Checksum checksum(binding_of_file(manifest_.info, kBlocksName));
    uint64_t bytes = 0;
    const auto append = [&](const std::vector<uint64_t>& blocks, size_t count) {
      checksum.add(blocks.data(), count * sizeof(uint64_t));
      file->append(blocks.data(), count * sizeof(uint64_t));
      bytes += count * sizeof(uint64_t);
    };
    unless_failed([&] {
      file = fs_.create(join_path(temporary_, kBlocksName));
      append(blocks_, blocks_.size());
    });
    std::vector<uint64_t> received(world_.size() > 1 ? kStreamedBlocks : 0);
    for (int rank = 1; rank < world_.size(); ++rank) {
      for (int64_t left = blocks_of[size_t(rank)]; left > 0;) {
        const auto count = std::min(int64_t(kStreamedBlocks), left);
        world_.receive(View(received.data(), {count}, DType::kInt64), rank, default_stream());
        unless_failed([&] { append(received, size_t(count)); });
        left -= count;
      }
    }
    unless_failed([&] {
      file->sync();
      file.reset();
      manifest_.files.push_back({std::string(kBlocksName), bytes, checksum.hex()});
      const std::string path = join_path(temporary_, kManifestName);
      require_tiling(manifest_, path);
      file = fs_.create(path);
      write_manifest(manifest_, [&](std::string_view text) {
        file->append(text.data(), text.size());
        world_.progress();
      });
      file->sync();
      file.reset();
      fs_.sync_directory(temporary_);
    });
    manifest_.pieces = {};
    return failure;
  }

  void refuse_overlap() const {
    const auto overlap = manifest_.pieces.find_overlap();
    if (!overlap) return;
    const auto rank_of = [this](size_t piece) {
      return std::upper_bound(first_pieces_.begin(), first_pieces_.end(), piece) - first_pieces_.begin() - 1;
    };
    fail(ErrorKind::kArgument,
         {.what = fmt::format("save_checkpoint: rank {} gives {}, and rank {} {}: some of it is there twice",
                              rank_of(overlap->first), box_text(manifest_.pieces[overlap->first]),
                              rank_of(overlap->second), box_text(manifest_.pieces[overlap->second])),
          .where = {},
          .why = "two ranks with a copy each may have different numbers",
          .fix = "let one rank give it"});
  }

  // A file beside the tensors, of which `write` appends the content.
  template <class Write>
  void write_other(std::string_view name, Write&& write) {
    const auto file = fs_.create(join_path(temporary_, name));
    Checksum checksum(binding_of_file(manifest_.info, name));
    uint64_t bytes = 0;
    write([&](std::string_view text) {
      checksum.add(text.data(), text.size());
      file->append(text.data(), text.size());
      bytes += text.size();
      world_.progress();
    });
    file->sync();
    manifest_.files.push_back({std::string(name), bytes, checksum.hex()});
  }

  void write_text(std::string_view name, std::string_view content) {
    write_other(name, [&](auto&& append) { append(content); });
  }

  // huggingface.co/docs/transformers, "Big models": where each weight is.
  void write_index() {
    const ManifestPieces& pieces = manifest_.pieces;
    const std::vector<uint32_t> order = pieces_by_name_in_file(pieces, TensorGroup::kModel);
    if (order.empty()) return;
    uint64_t total = 0;
    for (const uint32_t piece : order) total += pieces[piece].bytes();
    write_other(kModelIndexName, [&](auto&& append) {
      std::string text = fmt::format("{{\n  \"metadata\": {{\"total_size\": {}}},\n  \"weight_map\": {{", total);
      for (size_t i = 0; i < order.size(); ++i) {
        const ManifestPiece piece = pieces[order[i]];
        text += fmt::format("{}\n    {}: {}", i == 0 ? "" : ",", Json(name_in_file(piece)).text(),
                            Json(manifest_.files[piece.file].name).text());
        if (text.size() >= kBlockBytes) append(text), text.clear();
      }
      append(text + "\n  }\n}\n");
    });
  }

  // A disk that reports success and keeps something else is found out before the checkpoint counts.
  void read_back() const {
    const std::vector<CheckpointDamage> damages = verify_checkpoint(fs_, temporary_, world_, writers_);
    if (damages.empty()) return;
    fail(ErrorKind::kStorage, {.what = fmt::format("read back otherwise than it was written: {}", damages.front().what),
                               .where = damages.front().file,
                               .why = "the disk or its file system does not keep what it is given",
                               .fix = "write checkpoints to another disk, and look at the system log (dmesg)"});
  }

  void commit() {
    fs_.rename(temporary_, path_);
    try {
      fs_.sync_directory(directory_);
    } catch (const Error&) {  // whether the new name outlives a power loss is unknown: take it back
      try_to("take back a checkpoint", [&] {
        fs_.rename(path_, temporary_);
        fs_.remove_tree(temporary_);
      });
      throw;
    }
    try_to("write LATEST", [&] { fs_.write_atomically(join_path(directory_, kLatestName), name_ + "\n"); });
  }

  // Every rank throws the same, after what the save left is gone.
  [[noreturn]] void give_up(const Error& error) {
    std::string free = "unknown";
    if (is_first()) {
      try_to("remove what a failed save left", [&] { fs_.remove_tree(temporary_); });
      try_to("look at free space", [&] { free = bytes_text(fs_.free_bytes(directory_)); });
    }
    broadcast_text(world_, free);
    if (error.kind() != ErrorKind::kStorage && error.kind() != ErrorKind::kCheckpoint) fail_together(world_, error);
    fail_together(world_,
                  Error(ErrorKind::kStorage,
                        {.what = fmt::format("the checkpoint of step {} is not saved: {}", manifest_.info.step,
                                             error.report().what),
                         .where = error.report().where,
                         .why = fmt::format("older checkpoints are as they were; this one needs {}, and {} are free",
                                            bytes_text(needed_bytes_), free),
                         .fix = error.report().fix}));
  }

  FileSystem& fs_;
  const std::string directory_;
  const std::vector<TextFile>& text_files_;
  Communicator& world_;
  const std::string name_, path_, temporary_;
  Manifest manifest_;                  // of this rank; on rank 0, of all in the end
  std::vector<ManifestPiece> pieces_;  // of this rank
  std::vector<const char*> data_;      // as pieces_
  std::vector<Shard> shards_;
  std::vector<std::string> shard_names_;
  std::map<std::string, int> writers_;  // of the shards of all ranks
  std::vector<uint64_t> blocks_;
  std::vector<size_t> first_pieces_;  // on rank 0: where those of each rank begin
  uint64_t needed_bytes_ = 0;         // of all ranks
};

}  // namespace

std::string save_checkpoint(FileSystem& fs, const std::string& directory, const CheckpointInfo& info,
                            const std::vector<TensorPiece>& pieces, const std::vector<TextFile>& text_files,
                            const SaveOptions& options) {
  return save_checkpoint(fs, directory, info, pieces, text_files, options, *make_self_communicator());
}

std::string save_checkpoint(FileSystem& fs, const std::string& directory, const CheckpointInfo& info,
                            const std::vector<TensorPiece>& pieces, const std::vector<TextFile>& text_files,
                            const SaveOptions& options, Communicator& world) {
  return Saver(fs, directory, info, pieces, text_files, options, world).run();
}

void require_shared_directory(FileSystem& fs, const std::string& directory, Communicator& world) {
  const bool is_first = world.rank() == 0;
  if (world.size() == 1) {
    fs.make_directories(directory);
    return;
  }
  const std::string marker = join_path(directory, kMarkerName);
  std::string token;
  all_or_none(world, [&] {
    if (!is_first) return;
    std::random_device random;
    for (int i = 0; i < 4; ++i) token += fmt::format("{:08x}", random());
    fs.make_directories(directory);
    if (fs.exists(marker)) fs.remove_file(marker);
    write_file(fs, marker, token);
  });
  broadcast_text(world, token);
  const std::optional<Error> mine = error_in([&] {
    if (fs.exists(marker) && fs.read_text(marker, kBlockBytes) == token) return;
    fail(ErrorKind::kStorage, {.what = fmt::format("does not see the directory {} that rank 0 sees", directory),
                               .where = directory,
                               .why = "each rank reads and writes its own part of a checkpoint in it",
                               .fix = "put it on a file system that all hosts have under the same path"});
  });
  const std::optional<Error> all = error_in([&] { vote(world, mine); });
  if (is_first) try_to("remove a marker", [&] { fs.remove_file(marker); });
  if (all) fail_together(world, *all);
}

uint64_t checkpoint_bytes(const std::vector<TensorPiece>& pieces, const std::vector<TextFile>& text_files) {
  uint64_t bytes = 4096;
  for (const TensorPiece& piece : pieces) {
    const int64_t elements = piece.box ? num_elements(*piece.box, piece.shape.rank()) : piece.shape.num_elements();
    const uint64_t data = uint64_t(elements * size_of(piece.dtype));
    // Beside the data: its blocks' checksums, and its entries in a header, the index and the manifest.
    bytes += data + (data / kBlockBytes + 1) * sizeof(uint64_t) + 512 + 3 * piece.name.size();
  }
  for (const TextFile& file : text_files) bytes += file.content.size() + 256;
  return bytes;
}

void require_free_bytes(FileSystem& fs, const std::string& directory, uint64_t bytes) {
  std::string nearest = directory;
  while (!fs.exists(nearest) && directory_of(nearest) != nearest) nearest = directory_of(nearest);
  const uint64_t free = fs.free_bytes(nearest);
  if (free >= bytes) return;
  fail(ErrorKind::kStorage,
       {.what = fmt::format("{} has {} free; a checkpoint needs {}", directory, bytes_text(free), bytes_text(bytes)),
        .where = directory,
        .why = "",
        .fix = "free some space there, keep fewer checkpoints (checkpoint.keep_last), or write to "
               "another disk"});
}

std::vector<CheckpointEntry> list_checkpoints(FileSystem& fs, const std::string& directory) {
  std::vector<CheckpointEntry> entries;
  if (!fs.exists(directory)) return entries;
  for (const std::string& name : fs.list(directory)) {
    const int64_t step = step_of_checkpoint_name(name);
    const std::string path = join_path(directory, name);
    if (step < 0 || !fs.info(path).is_directory) continue;
    if (!is_committed(fs, path)) {
      log_info("{} has no manifest: a save that did not finish; it does not count", path);
      continue;
    }
    entries.push_back({path, step});
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
  return entries;
}

namespace {

// list_checkpoints of rank 0, on every rank.
std::vector<CheckpointEntry> entries_of_first(FileSystem& fs, const std::string& directory, Communicator& world) {
  std::string paths;
  all_or_none(world, [&] {
    if (world.rank() != 0) return;
    std::vector<std::string> each;
    for (const CheckpointEntry& entry : list_checkpoints(fs, directory)) each.push_back(entry.path);
    paths = pack(each);
  });
  broadcast_text(world, paths);
  std::vector<CheckpointEntry> entries;
  for (const std::string& path : unpack(paths)) entries.push_back({path, step_of_checkpoint_name(file_name_of(path))});
  return entries;
}

}  // namespace

std::optional<CheckpointEntry> find_newest_good_checkpoint(FileSystem& fs, const std::string& directory) {
  return find_newest_good_checkpoint(fs, directory, *make_self_communicator());
}

std::optional<CheckpointEntry> find_newest_good_checkpoint(FileSystem& fs, const std::string& directory,
                                                           Communicator& world) {
  const std::vector<CheckpointEntry> entries = entries_of_first(fs, directory, world);
  std::string reasons;
  for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
    const std::vector<CheckpointDamage> damages = verify_checkpoint(fs, entry->path, world);
    if (damages.empty()) return *entry;
    std::string reason;
    for (const CheckpointDamage& damage : damages) reason += damage.what + "\n";
    reasons += (reasons.empty() ? "" : "; ") + damages.front().what;
    if (world.rank() != 0) continue;
    log_warning("{} is damaged and set aside: {}", entry->path, damages.front().what);
    try_to("set a damaged checkpoint aside", [&] {
      const std::string bad = join_path(directory, "bad-" + file_name_of(entry->path));
      std::string aside = bad;
      for (int i = 2; fs.exists(aside); ++i) aside = fmt::format("{}-{}", bad, i);
      fs.rename(entry->path, aside);
      fs.write_atomically(join_path(aside, kReasonName), reason);
      fs.sync_directory(directory);
    });
  }
  if (entries.empty()) return std::nullopt;
  fail_together(
      world,
      Error(ErrorKind::kCheckpoint,
            {.what = fmt::format("none of the {} checkpoints in {} is good: {}", entries.size(), directory, reasons),
             .where = directory,
             .why = "to start from the beginning without being told to would lose the run",
             .fix = "restore one from a copy, or give the run another directory to start anew"}));
}

void clean_up_checkpoints(FileSystem& fs, const std::string& directory) {
  if (!fs.exists(directory)) return;
  for (const std::string& name : fs.list(directory)) {
    const bool is_temporary = starts_with(name, kTemporaryPrefix) && name.find(kTemporaryMark) != std::string::npos;
    const std::string path = join_path(directory, name);
    if (is_temporary || starts_with(name, kTrashPrefix)) {
      log_info("removing {}, which an interrupted save or removal left", path);
      fs.remove_tree(path);
    } else if (step_of_checkpoint_name(name) >= 0 && fs.info(path).is_directory && !is_committed(fs, path)) {
      log_info("removing {}, which has no manifest: a save that did not finish", path);
      remove_checkpoint(fs, directory, name);
    }
  }
}

int remove_old_checkpoints(FileSystem& fs, const std::string& directory, int64_t keep_last) {
  return remove_old_checkpoints(fs, directory, keep_last, *make_self_communicator());
}

int remove_old_checkpoints(FileSystem& fs, const std::string& directory, int64_t keep_last, Communicator& world) {
  require(keep_last >= 0, "remove_old_checkpoints: keep_last is {}; wanted 0 (all) or more", keep_last);
  if (keep_last == 0) return 0;
  std::vector<CheckpointEntry> entries;
  std::vector<CheckpointDamage> damages;
  try {
    entries = entries_of_first(fs, directory, world);
    if (int64_t(entries.size()) > keep_last) damages = verify_checkpoint(fs, entries.back().path, world);
  } catch (const Error& error) {
    if (is_of_peers(error)) throw;
    if (world.rank() == 0) log_warning("cannot remove old checkpoints: {}", error.report().what);
    return 0;
  }
  if (int64_t(entries.size()) <= keep_last) return 0;
  int64_t removed = 0;
  if (world.rank() == 0 && !damages.empty()) {
    log_warning("no old checkpoint is removed, because the newest is damaged: {}", damages.front().what);
  } else if (world.rank() == 0) {
    try_to("remove old checkpoints", [&] {
      for (size_t i = 0; i + size_t(keep_last) < entries.size(); ++i) {
        remove_checkpoint(fs, directory, file_name_of(entries[i].path));
        ++removed;
      }
    });
  }
  world.broadcast(View(&removed, {1}, DType::kInt64), /*root=*/0, default_stream());
  return int(removed);
}

}  // namespace octet
