#include "tools/train/checkpoint_manifest.h"

#include <algorithm>
#include <map>
#include <set>

#include "core/io/safetensors_index.h"

namespace octet {
namespace {

constexpr std::string_view kFormat = "octet checkpoint";
constexpr std::string_view kDigestBefore = ",\n  \"digest\": \"", kDigestAfter = "\"\n}\n";
constexpr size_t kDigestDigits = 32;
constexpr size_t kMostPiecesOfATensor = 1024;
constexpr TensorGroup kGroups[] = {TensorGroup::kModel, TensorGroup::kOptim, TensorGroup::kState};

bool is_digest(std::string_view text) {
  return text.size() == kDigestDigits && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

Json sizes_json(const std::array<int64_t, kMaxRank>& sizes, int rank) {
  Json list = Json::array();
  for (int axis = 0; axis < rank; ++axis) list.push_back(sizes[size_t(axis)]);
  return list;
}

std::string sizes_text(const std::array<int64_t, kMaxRank>& sizes, int rank) { return sizes_json(sizes, rank).text(); }

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

// Reads at most kMaxRank sizes of at least `lowest`.
int read_sizes(const JsonCursor& list, int64_t lowest, std::array<int64_t, kMaxRank>& sizes) {
  if (list.size() > size_t(kMaxRank)) list.refuse(fmt::format("has {} axes; wanted at most {}", list.size(), kMaxRank));
  for (size_t axis = 0; axis < list.size(); ++axis) sizes[axis] = list.at(axis).as_int64(lowest);
  return int(list.size());
}

ManifestFile read_file_entry(const JsonCursor& entry) {
  entry.allow_keys({"name", "bytes", "checksum"});
  ManifestFile file{.name = entry["name"].as_string(),
                    .bytes = entry["bytes"].as_uint64(),
                    .checksum = entry["checksum"].as_string()};
  const std::string fault = fault_of_file_name(file.name);
  if (!fault.empty()) entry["name"].refuse(fmt::format("is a file name that {}", fault));
  if (file.name == kManifestName) entry["name"].refuse("is the manifest itself");
  if (!is_digest(file.checksum)) entry["checksum"].refuse("is no checksum; wanted 32 hexadecimal digits");
  return file;
}

ManifestPiece read_piece_entry(const JsonCursor& entry, const std::map<std::string, size_t, std::less<>>& file_index,
                               const std::vector<ManifestFile>& files) {
  entry.allow_keys({"name", "group", "dtype", "shape", "start", "extent", "file", "begin", "end", "checksum"});
  ManifestPiece piece;
  piece.name = entry["name"].as_string();
  const std::string fault = fault_of_tensor_name(piece.name);
  if (!fault.empty()) entry["name"].refuse(fmt::format("is a tensor name that {}", fault));
  const std::string& group = entry["group"].as_string();
  const auto known = std::find_if(std::begin(kGroups), std::end(kGroups), [&](auto g) { return name_of(g) == group; });
  if (known == std::end(kGroups)) entry["group"].refuse("is no group; wanted model, optim or state");
  piece.group = *known;
  const auto dtype = stored_dtype_named(entry["dtype"].as_string());
  if (!dtype) entry["dtype"].refuse("is no dtype that this program knows");
  piece.dtype = *dtype;

  std::array<int64_t, kMaxRank> sizes{};
  const int rank = read_sizes(entry["shape"], 1, sizes);
  int64_t total = size_of(piece.dtype);
  for (int axis = 0; axis < rank; ++axis) {
    if (__builtin_mul_overflow(total, sizes[size_t(axis)], &total)) {
      entry["shape"].refuse("is a shape of more than 2^63 bytes");
    }
  }
  piece.shape = shape_of(sizes, rank);
  piece.box = whole_box(piece.shape);
  if (entry.find("start") || entry.find("extent")) {
    if (read_sizes(entry["start"], 0, piece.box.start) != rank ||
        read_sizes(entry["extent"], 1, piece.box.extent) != rank) {
      entry.refuse("has a box of another rank than its shape");
    }
    for (size_t axis = 0; axis < size_t(rank); ++axis) {
      if (piece.box.extent[axis] > sizes[axis] || piece.box.start[axis] > sizes[axis] - piece.box.extent[axis]) {
        entry.refuse("has a box outside of its shape");
      }
    }
  }
  const auto file = file_index.find(entry["file"].as_string());
  if (file == file_index.end()) entry["file"].refuse("is no file of this checkpoint");
  piece.file = file->second;
  piece.begin = entry["begin"].as_uint64();
  piece.end = entry["end"].as_uint64();
  if (piece.begin > piece.end || piece.end > files[piece.file].bytes) {
    entry.refuse(
        fmt::format("lies at bytes {} to {} of a file of {}", piece.begin, piece.end, files[piece.file].bytes));
  }
  const uint64_t bytes = uint64_t(num_elements(piece.box, rank)) * uint64_t(size_of(piece.dtype));
  if (piece.bytes() != bytes) {
    entry.refuse(fmt::format("has {} bytes in its file and {} by its dtype and box", piece.bytes(), bytes));
  }
  piece.checksum = entry["checksum"].as_string();
  if (!is_digest(piece.checksum)) entry["checksum"].refuse("is no checksum; wanted 32 hexadecimal digits");
  return piece;
}

bool is_apart(const Box& a, const Box& b, int rank) {
  for (size_t axis = 0; axis < size_t(rank); ++axis) {
    if (a.start[axis] + a.extent[axis] <= b.start[axis] || b.start[axis] + b.extent[axis] <= a.start[axis]) return true;
  }
  return false;
}

std::map<std::string_view, std::vector<const ManifestPiece*>> by_tensor(const std::vector<ManifestPiece>& pieces) {
  std::map<std::string_view, std::vector<const ManifestPiece*>> pieces_of;
  for (const ManifestPiece& piece : pieces) pieces_of[piece.name].push_back(&piece);
  return pieces_of;
}

// Boxes that lie inside, do not overlap and have as many elements as the whole, tile it.
void check_tiling(const std::vector<ManifestPiece>& pieces, const JsonCursor& list) {
  for (const auto& [name, parts] : by_tensor(pieces)) {
    const ManifestPiece& first = *parts.front();
    if (parts.size() > kMostPiecesOfATensor) {
      list.refuse(
          fmt::format("has {} pieces of tensor {}; wanted at most {}", parts.size(), name, kMostPiecesOfATensor));
    }
    int64_t covered = 0;
    for (const ManifestPiece* part : parts) {
      if (part->dtype != first.dtype || part->shape != first.shape || part->group != first.group) {
        list.refuse(fmt::format("gives the pieces of tensor {} different dtypes, shapes or groups", name));
      }
      covered += num_elements(part->box, first.shape.rank());
    }
    if (covered != first.shape.num_elements()) {
      list.refuse(
          fmt::format("has pieces with {} of the {} elements of tensor {}", covered, first.shape.num_elements(), name));
    }
  }
  if (const auto overlap = find_overlap(pieces)) {
    list.refuse(fmt::format("has overlapping pieces of tensor {}", pieces[overlap->first].name));
  }
}

void check_ranges(const std::vector<ManifestPiece>& pieces, const JsonCursor& list) {
  std::vector<const ManifestPiece*> by_place;
  for (const ManifestPiece& piece : pieces) by_place.push_back(&piece);
  std::sort(by_place.begin(), by_place.end(),
            [](const auto* a, const auto* b) { return a->file != b->file ? a->file < b->file : a->begin < b->begin; });
  for (size_t i = 1; i < by_place.size(); ++i) {
    if (by_place[i]->file == by_place[i - 1]->file && by_place[i]->begin < by_place[i - 1]->end) {
      list.refuse(fmt::format("puts tensors {} and {} into the same bytes", by_place[i - 1]->name, by_place[i]->name));
    }
  }
}

Json files_json(const Manifest& manifest) {
  Json files = Json::array();
  for (const ManifestFile& file : manifest.files) {
    Json entry = Json::object();
    entry.set("name", file.name).set("bytes", file.bytes).set("checksum", file.checksum);
    files.push_back(std::move(entry));
  }
  return files;
}

Json tensors_json(const Manifest& manifest) {
  Json tensors = Json::array();
  for (const ManifestPiece& piece : manifest.pieces) {
    const int rank = piece.shape.rank();
    Json entry = Json::object();
    entry.set("name", piece.name).set("group", name_of(piece.group)).set("dtype", name_of(piece.dtype));
    entry.set("shape", sizes_json(whole_box(piece.shape).extent, rank));
    if (!piece.is_whole()) {
      entry.set("start", sizes_json(piece.box.start, rank)).set("extent", sizes_json(piece.box.extent, rank));
    }
    entry.set("file", manifest.files[piece.file].name).set("begin", piece.begin).set("end", piece.end);
    entry.set("checksum", piece.checksum);
    tensors.push_back(std::move(entry));
  }
  return tensors;
}

// The files and pieces of `root`, after those that are there.
std::map<std::string, size_t, std::less<>> add_entries(Manifest& manifest, const JsonCursor& root) {
  const JsonCursor files = root["files"], tensors = root["tensors"];
  std::map<std::string, size_t, std::less<>> file_index;
  for (size_t i = 0; i < files.size(); ++i) {
    file_index.emplace(files.at(i)["name"].as_string(), manifest.files.size());
    manifest.files.push_back(read_file_entry(files.at(i)));
    if (file_index.size() <= i) files.refuse(fmt::format("names {} twice", manifest.files.back().name));
  }
  uint64_t blocks = 0;
  if (!manifest.pieces.empty()) blocks = manifest.pieces.back().first_block + manifest.pieces.back().num_blocks();
  for (size_t i = 0; i < tensors.size(); ++i) {
    manifest.pieces.push_back(read_piece_entry(tensors.at(i), file_index, manifest.files));
    manifest.pieces.back().first_block = blocks;
    blocks += manifest.pieces.back().num_blocks();
  }
  return file_index;
}

constexpr uint64_t kMostManifestBytes = uint64_t(256) << 20;

}  // namespace

std::string_view name_of(TensorGroup group) {
  constexpr std::string_view kNames[] = {"model", "optim", "state"};
  return kNames[size_t(group)];
}

std::string checkpoint_name(int64_t step) { return fmt::format("step-{:08}", step); }

int64_t step_of_checkpoint_name(std::string_view name) {
  constexpr std::string_view kPrefix = "step-";
  if (name.size() > kPrefix.size() + 18 || name.substr(0, kPrefix.size()) != kPrefix) return -1;
  int64_t step = 0;
  for (const char c : name.substr(kPrefix.size())) {
    if (c < '0' || c > '9') return -1;
    step = step * 10 + (c - '0');
  }
  return checkpoint_name(step) == name ? step : -1;
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

std::string manifest_text(const Manifest& manifest) {
  const CheckpointInfo& info = manifest.info;
  Json json = Json::object();
  json.set("format", kFormat)
      .set("format_version", manifest.format_version)
      .set("code_version", info.code_version)
      .set("run_id", info.run_id)
      .set("step", info.step)
      .set("tokens", info.tokens)
      .set("layout", info.layout)
      .set("rng", info.rng)
      .set("data_cursor", info.data_cursor)
      .set("meta", info.meta);
  json.set("files", files_json(manifest)).set("tensors", tensors_json(manifest));
  std::string text = json.text(/*line_depth=*/2);
  text.resize(text.size() - std::string_view("\n}").size());
  const std::string digest = checksum_hex(text);
  text += kDigestBefore;
  text += digest;
  text += kDigestAfter;
  return text;
}

Manifest parse_manifest(std::string_view text, const std::string& path) {
  const JsonSource source{.kind = ErrorKind::kCheckpoint, .file = path};
  const Json json = parse_json(text, source, {.bytes = kMostManifestBytes});
  const JsonCursor root(json, source);
  if (root["format"].as_string() != kFormat) root["format"].refuse("is another format; wanted \"octet checkpoint\"");

  constexpr size_t kTail = kDigestBefore.size() + kDigestDigits + kDigestAfter.size();
  const std::string_view body = text.substr(0, text.size() < kTail ? 0 : text.size() - kTail);
  const bool is_sound =
      text.size() >= kTail &&
      text.substr(body.size()) == std::string(kDigestBefore) + checksum_hex(body) + std::string(kDigestAfter);
  Manifest manifest;
  manifest.format_version = root["format_version"].as_int64();
  if (manifest.format_version > kNewestCheckpointFormat) {
    fail(ErrorKind::kCheckpoint,
         {.what = fmt::format("{} was written in format version {}; this program reads up to {}", path,
                              manifest.format_version, kNewestCheckpointFormat),
          .where = path,
          .why = is_sound ? "" : "the manifest does not match its own digest either; it may be damaged",
          .fix = "use the version of octet that wrote it, or a newer one"});
  }
  if (manifest.format_version < kOldestCheckpointFormat) {
    root["format_version"].refuse(
        fmt::format("is {}; this program reads from {}", manifest.format_version, kOldestCheckpointFormat));
  }
  if (!is_sound) root.refuse("does not match its own digest");
  root.allow_keys({"format", "format_version", "code_version", "run_id", "step", "tokens", "layout", "rng",
                   "data_cursor", "meta", "files", "tensors", "digest"});
  CheckpointInfo& info = manifest.info;
  info.run_id = root["run_id"].as_string();
  if (!fault_of_file_name(info.run_id).empty()) root["run_id"].refuse("is no run id");
  info.step = root["step"].as_int64(0);
  info.tokens = root["tokens"].as_int64(0);
  info.code_version = root["code_version"].as_string();
  info.layout = root["layout"].value();
  info.rng = root["rng"].value();
  info.data_cursor = root["data_cursor"].value();
  info.meta = root["meta"].value();

  const std::map<std::string, size_t, std::less<>> file_index = add_entries(manifest, root);
  const JsonCursor files = root["files"], tensors = root["tensors"];
  check_ranges(manifest.pieces, tensors);
  check_tiling(manifest.pieces, tensors);
  const auto blocks_file = file_index.find(kBlocksName);
  if (blocks_file == file_index.end()) files.refuse(fmt::format("lacks {}", kBlocksName));
  uint64_t blocks = 0;
  for (const ManifestPiece& piece : manifest.pieces) blocks += piece.num_blocks();
  if (manifest.files[blocks_file->second].bytes != blocks * sizeof(uint64_t)) {
    files.refuse(fmt::format("gives {} a size of {}; wanted {}", kBlocksName, manifest.files[blocks_file->second].bytes,
                             blocks * sizeof(uint64_t)));
  }
  return manifest;
}

std::string manifest_part_text(const Manifest& part) {
  return Json::object().set("files", files_json(part)).set("tensors", tensors_json(part)).text();
}

void append_manifest_part(Manifest& manifest, std::string_view text, const std::string& from) {
  const JsonSource source{.kind = ErrorKind::kCommunication, .file = from};
  const Json json = parse_json(text, source, {.bytes = kMostManifestBytes});
  add_entries(manifest, JsonCursor(json, source));
}

std::optional<std::pair<size_t, size_t>> find_overlap(const std::vector<ManifestPiece>& pieces) {
  for (const auto& [name, parts] : by_tensor(pieces)) {
    for (size_t i = 0; i < parts.size(); ++i) {
      for (size_t j = 0; j < i; ++j) {
        const int rank = std::min(parts[i]->shape.rank(), parts[j]->shape.rank());
        if (is_apart(parts[i]->box, parts[j]->box, rank)) continue;
        return std::pair(size_t(parts[j] - pieces.data()), size_t(parts[i] - pieces.data()));
      }
    }
  }
  return std::nullopt;
}

std::string box_text(const ManifestPiece& piece) {
  std::string text = "elements [";
  for (int axis = 0; axis < piece.shape.rank(); ++axis) {
    const int64_t start = piece.box.start[size_t(axis)];
    text += fmt::format("{}{}:{}", axis == 0 ? "" : ", ", start, start + piece.box.extent[size_t(axis)]);
  }
  return text + fmt::format("] of tensor {}", piece.name);
}

std::string binding_of_file(const CheckpointInfo& info, std::string_view name) {
  return fmt::format("file\n{}\n{}\n{}\n", info.run_id, info.step, name);
}

std::string binding_of_piece(const CheckpointInfo& info, const ManifestPiece& piece) {
  const int rank = piece.shape.rank();
  return fmt::format("piece\n{}\n{}\n{}\n{}\n{}\n{}\n{}\n", info.run_id, info.step, piece.name, name_of(piece.dtype),
                     to_string(piece.shape), sizes_text(piece.box.start, rank), sizes_text(piece.box.extent, rank));
}

uint64_t block_seed(std::string_view binding) { return checksum64(binding.data(), binding.size(), 0); }

uint64_t block_checksum(const void* from, uint64_t bytes, uint64_t seed, uint64_t block) {
  return checksum64(from, bytes, seed + block);
}

}  // namespace octet
