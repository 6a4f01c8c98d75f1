#include "tools/train/checkpoint_store.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "core/base/log.h"
#include "core/io/safetensors_index.h"

namespace octet {
namespace {

constexpr std::string_view kTrashPrefix = ".trash-", kTemporaryPrefix = ".step-", kTemporaryMark = ".tmp-";
constexpr std::string_view kLatestName = "LATEST", kReasonName = "reason.txt";

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

// The name of a piece inside a safetensors file: that of the tensor where it is whole, as Hugging Face wants it.
std::string name_in_file(const ManifestPiece& piece) {
  if (piece.is_whole()) return piece.name;
  std::string name = piece.name + "@";
  for (int axis = 0; axis < piece.shape.rank(); ++axis) {
    const int64_t start = piece.box.start[size_t(axis)];
    fmt::format_to(std::back_inserter(name), "{}{}:{}", axis == 0 ? "" : ",", start,
                   start + piece.box.extent[size_t(axis)]);
  }
  return name;
}

Shape extent_shape(const ManifestPiece& piece) {
  const auto& extent = piece.box.extent;
  switch (piece.shape.rank()) {
    case 0:
      return {};
    case 1:
      return {extent[0]};
    case 2:
      return {extent[0], extent[1]};
    case 3:
      return {extent[0], extent[1], extent[2]};
    default:
      return {extent[0], extent[1], extent[2], extent[3]};
  }
}

class Saver {
 public:
  Saver(FileSystem& fs, std::string directory, const CheckpointInfo& info, const std::vector<TensorPiece>& pieces,
        const std::vector<TextFile>& text_files, const SaveOptions& options)
      : fs_(fs), directory_(std::move(directory)), text_files_(text_files) {
    manifest_.info = info;
    check(pieces);
    plan(pieces, options);
    name_ = checkpoint_name(info.step);
    temporary_ =
        join_path(directory_, fmt::format("{}{}{}{}", kTemporaryPrefix, info.step, kTemporaryMark, info.run_id));
  }

  std::string run() {
    const std::string path = join_path(directory_, name_);
    fs_.make_directories(directory_);
    if (fs_.exists(path)) {
      if (is_committed(fs_, path)) {
        fail(ErrorKind::kStorage, {.what = fmt::format("{} is there already", path),
                                   .where = path,
                                   .why = "a checkpoint is never written over",
                                   .fix = "remove or rename it, or save under another step"});
      }
      remove_checkpoint(fs_, directory_, name_);
    }
    fs_.remove_tree(temporary_);
    try {
      fs_.make_directory(temporary_);
      write_all();
      fs_.sync_directory(temporary_);
      read_back();
      fs_.rename(temporary_, path);
    } catch (const Error&) {
      try_to("remove what a failed save left", [&] { fs_.remove_tree(temporary_); });
      throw;
    }
    try {
      fs_.sync_directory(directory_);
    } catch (const Error&) {  // whether the new name outlives a power loss is unknown: take it back
      try_to("take back a checkpoint", [&] {
        fs_.rename(path, temporary_);
        fs_.remove_tree(temporary_);
      });
      throw;
    }
    try_to("write LATEST", [&] { fs_.write_atomically(join_path(directory_, kLatestName), name_ + "\n"); });
    return path;
  }

 private:
  struct Shard {
    TensorGroup group;
    std::vector<size_t> pieces;  // indices into manifest_.pieces
    uint64_t bytes = 0;
  };

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
      ManifestPiece entry{.name = piece->name,
                          .group = piece->group,
                          .dtype = piece->dtype,
                          .shape = piece->shape,
                          .box = box_of(*piece),
                          .checksum = ""};
      const uint64_t bytes = uint64_t(num_elements(entry.box, entry.shape.rank()) * size_of(entry.dtype));
      if (shards_.empty() || shards_.back().group != entry.group ||
          shards_.back().bytes + bytes > options.shard_bytes ||
          shards_.back().pieces.size() == kMaxSafetensorsTensors) {
        shards_.push_back({.group = entry.group, .pieces = {}});
      }
      shards_.back().bytes += bytes;
      shards_.back().pieces.push_back(manifest_.pieces.size());
      manifest_.pieces.push_back(std::move(entry));
      data_.push_back(static_cast<const char*>(piece->data));
    }
  }

  std::string shard_name(size_t shard) const {
    const TensorGroup group = shards_[shard].group;
    size_t before = 0, of_group = 0;
    for (size_t i = 0; i < shards_.size(); ++i) {
      if (shards_[i].group != group) continue;
      ++of_group;
      before += i < shard;
    }
    return fmt::format("{}-{:05}-of-{:05}.safetensors", name_of(group), before + 1, of_group);
  }

  void write_all() {
    for (size_t shard = 0; shard < shards_.size(); ++shard) {
      try {
        write_shard(shard);
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::kStorage) throw;
        // After a failed sync the system counts lost bytes as written, so the second try takes a new file.
        log_warning("{}; writing {} once more", error.report().what, shard_name(shard));
        const std::string path = join_path(temporary_, shard_name(shard));
        if (fs_.exists(path)) fs_.remove_file(path);
        write_shard(shard);
      }
    }
    for (const TextFile& file : text_files_) write_text(file.name, file.content);
    if (!shards_.empty() && shards_.front().group == TensorGroup::kModel) write_text(kModelIndexName, model_index());
    write_text(kBlocksName, {reinterpret_cast<const char*>(blocks_.data()), blocks_.size() * sizeof(uint64_t)});
    const std::string manifest = manifest_text(manifest_);
    parse_manifest(manifest, join_path(temporary_, kManifestName));  // refuses boxes that do not tile their tensor
    write_file(join_path(temporary_, kManifestName), manifest);
  }

  void write_shard(size_t index) {
    const Shard& shard = shards_[index];
    const std::string name = shard_name(index);
    std::vector<SafetensorsWriter::Tensor> tensors;
    for (const size_t p : shard.pieces) {
      const ManifestPiece& piece = manifest_.pieces[p];
      tensors.push_back({name_in_file(piece), piece.dtype, extent_shape(piece)});
    }
    SafetensorsWriter writer(fs_, join_path(temporary_, name), std::move(tensors), {{"format", "pt"}},
                             binding_of_file(manifest_.info, name));
    blocks_.resize(first_block_of(shard));
    uint64_t at = writer.header_bytes();
    for (const size_t p : shard.pieces) {
      ManifestPiece& piece = manifest_.pieces[p];
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
      }
      piece.checksum = checksum.hex();
      at = piece.end;
    }
    const uint64_t bytes = writer.file_bytes();
    const std::string checksum = writer.finish();
    if (manifest_.files.size() <= index) manifest_.files.resize(index + 1);
    manifest_.files[index] = {name, bytes, checksum};
  }

  uint64_t first_block_of(const Shard& shard) const {
    const size_t first = shard.pieces.front();
    return first == 0 ? 0 : manifest_.pieces[first - 1].first_block + manifest_.pieces[first - 1].num_blocks();
  }

  void write_file(const std::string& path, std::string_view content) {
    const auto file = fs_.create(path);
    file->append(content.data(), content.size());
    file->sync();
  }

  void write_text(std::string_view name, std::string_view content) {
    write_file(join_path(temporary_, name), content);
    Checksum checksum(binding_of_file(manifest_.info, name));
    checksum.add(content.data(), content.size());
    manifest_.files.push_back({std::string(name), content.size(), checksum.hex()});
  }

  // huggingface.co/docs/transformers, "Big models": where each weight is.
  std::string model_index() const {
    uint64_t total = 0;
    std::vector<std::pair<std::string, std::string>> files;
    for (const ManifestPiece& piece : manifest_.pieces) {
      if (piece.group != TensorGroup::kModel) continue;
      total += piece.bytes();
      files.emplace_back(name_in_file(piece), manifest_.files[piece.file].name);
    }
    std::sort(files.begin(), files.end());
    std::string text = fmt::format("{{\n  \"metadata\": {{\"total_size\": {}}},\n  \"weight_map\": {{", total);
    for (size_t i = 0; i < files.size(); ++i) {
      text +=
          fmt::format("{}\n    {}: {}", i == 0 ? "" : ",", Json(files[i].first).text(), Json(files[i].second).text());
    }
    return text + "\n  }\n}\n";
  }

  // A disk that reports success and keeps something else is found out before the checkpoint counts.
  void read_back() const {
    const std::vector<CheckpointDamage> damages = verify_checkpoint(fs_, temporary_);
    if (damages.empty()) return;
    fail(ErrorKind::kStorage, {.what = fmt::format("read back otherwise than it was written: {}", damages.front().what),
                               .where = damages.front().file,
                               .why = "the disk or its file system does not keep what it is given",
                               .fix = "write checkpoints to another disk, and look at the system log (dmesg)"});
  }

  FileSystem& fs_;
  const std::string directory_;
  const std::vector<TextFile>& text_files_;
  std::string name_, temporary_;
  Manifest manifest_;
  std::vector<const char*> data_;  // as manifest_.pieces
  std::vector<Shard> shards_;
  std::vector<uint64_t> blocks_;
};

}  // namespace

std::string save_checkpoint(FileSystem& fs, const std::string& directory, const CheckpointInfo& info,
                            const std::vector<TensorPiece>& pieces, const std::vector<TextFile>& text_files,
                            const SaveOptions& options) {
  Saver saver(fs, directory, info, pieces, text_files, options);
  const uint64_t needed = checkpoint_bytes(pieces, text_files);
  try {
    fs.make_directories(directory);
    require_free_bytes(fs, directory, needed);
    return saver.run();
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kArgument) throw;
    std::string free = "unknown";
    try_to("look at free space", [&] { free = bytes_text(fs.free_bytes(directory)); });
    fail(ErrorKind::kStorage,
         {.what = fmt::format("the checkpoint of step {} is not saved: {}", info.step, error.report().what),
          .where = error.report().where,
          .why = fmt::format("older checkpoints are as they were; this one needs {}, and {} are free",
                             bytes_text(needed), free),
          .fix = error.report().fix});
  }
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

std::optional<CheckpointEntry> find_newest_good_checkpoint(FileSystem& fs, const std::string& directory) {
  const std::vector<CheckpointEntry> entries = list_checkpoints(fs, directory);
  std::string reasons;
  for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
    const std::vector<CheckpointDamage> damages = verify_checkpoint(fs, entry->path);
    if (damages.empty()) return *entry;
    std::string reason;
    for (const CheckpointDamage& damage : damages) reason += damage.what + "\n";
    reasons += (reasons.empty() ? "" : "; ") + damages.front().what;
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
  fail(ErrorKind::kCheckpoint,
       {.what = fmt::format("none of the {} checkpoints in {} is good: {}", entries.size(), directory, reasons),
        .where = directory,
        .why = "to start from the beginning without being told to would lose the run",
        .fix = "restore one from a copy, or give the run another directory to start anew"});
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
  require(keep_last >= 0, "remove_old_checkpoints: keep_last is {}; wanted 0 (all) or more", keep_last);
  int removed = 0;
  try_to("remove old checkpoints", [&] {
    const std::vector<CheckpointEntry> entries = list_checkpoints(fs, directory);
    if (keep_last == 0 || int64_t(entries.size()) <= keep_last) return;
    const std::vector<CheckpointDamage> damages = verify_checkpoint(fs, entries.back().path);
    if (!damages.empty()) {
      log_warning("no old checkpoint is removed, because the newest is damaged: {}", damages.front().what);
      return;
    }
    for (size_t i = 0; i + size_t(keep_last) < entries.size(); ++i) {
      remove_checkpoint(fs, directory, file_name_of(entries[i].path));
      ++removed;
    }
  });
  return removed;
}

}  // namespace octet
