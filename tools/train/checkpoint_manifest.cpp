#include "tools/train/checkpoint_manifest.h"

#include <algorithm>
#include <cstring>
#include <map>

namespace octet {
namespace {

constexpr std::string_view kFormat = "octet checkpoint";
constexpr std::string_view kDigestBefore = ",\n  \"digest\": \"", kDigestAfter = "\"\n}\n";
constexpr size_t kDigestDigits = 32;
constexpr size_t kMostPiecesOfATensor = 1024;
constexpr TensorGroup kGroups[] = {TensorGroup::kModel, TensorGroup::kOptim, TensorGroup::kState};

Json sizes_json(const std::array<int64_t, kMaxRank>& sizes, int rank) {
  Json list = Json::array();
  for (int axis = 0; axis < rank; ++axis) list.push_back(sizes[size_t(axis)]);
  return list;
}

std::string sizes_text(const std::array<int64_t, kMaxRank>& sizes, int rank) { return sizes_json(sizes, rank).text(); }

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
  if (!digest_from_hex(file.checksum)) entry["checksum"].refuse("is no checksum; wanted 32 hexadecimal digits");
  return file;
}

// The number of each file.
using FileIndex = std::map<std::string, size_t, std::less<>>;

// Refers to the entry.
ManifestPiece read_piece_entry(const JsonCursor& entry, const FileIndex& file_index,
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
  const auto checksum = digest_from_hex(entry["checksum"].as_string());
  if (!checksum) entry["checksum"].refuse("is no checksum; wanted 32 hexadecimal digits");
  piece.checksum = *checksum;
  return piece;
}

// Boxes that lie inside, do not overlap and have as many elements as the whole, tile it.
void check_tiling(const ManifestPieces& pieces, const JsonCursor& list) {
  for (size_t place = 0; place < pieces.num_tensors(); ++place) {
    const ManifestPieces::Tensor tensor = pieces.tensor(place);
    const std::span<const uint32_t> parts = pieces.pieces_of(place);
    if (parts.size() > kMostPiecesOfATensor) {
      list.refuse(fmt::format("has {} pieces of tensor {}; wanted at most {}", parts.size(), tensor.name,
                              kMostPiecesOfATensor));
    }
    int64_t covered = 0;
    for (const uint32_t part : parts) covered += num_elements(pieces[part].box, tensor.shape.rank());
    if (covered != tensor.shape.num_elements()) {
      list.refuse(fmt::format("has pieces with {} of the {} elements of tensor {}", covered,
                              tensor.shape.num_elements(), tensor.name));
    }
  }
  if (const auto overlap = pieces.find_overlap()) {
    list.refuse(fmt::format("has overlapping pieces of tensor {}", pieces[overlap->first].name));
  }
}

void check_ranges(const ManifestPieces& pieces, const JsonCursor& list) {
  const std::vector<uint32_t> order = pieces.by_place();
  for (size_t i = 1; i < order.size(); ++i) {
    const ManifestPiece before = pieces[order[i - 1]], piece = pieces[order[i]];
    if (piece.file == before.file && piece.begin < before.end) {
      list.refuse(fmt::format("puts tensors {} and {} into the same bytes", before.name, piece.name));
    }
  }
}

Json file_json(const ManifestFile& file) {
  Json entry = Json::object();
  entry.set("name", file.name).set("bytes", file.bytes).set("checksum", file.checksum);
  return entry;
}

Json piece_json(const Manifest& manifest, const ManifestPiece& piece) {
  const int rank = piece.shape.rank();
  Json entry = Json::object();
  entry.set("name", piece.name).set("group", name_of(piece.group)).set("dtype", name_of(piece.dtype));
  entry.set("shape", sizes_json(whole_box(piece.shape).extent, rank));
  if (!piece.is_whole()) {
    entry.set("start", sizes_json(piece.box.start, rank)).set("extent", sizes_json(piece.box.extent, rank));
  }
  entry.set("file", manifest.files[piece.file].name).set("begin", piece.begin).set("end", piece.end);
  entry.set("checksum", hex(piece.checksum));
  return entry;
}

// Adds entries of the lists "files" and "tensors" as they come.
class EntryReader {
 public:
  explicit EntryReader(Manifest& manifest) : manifest_(manifest) {
    for (size_t i = 0; i < manifest.files.size(); ++i) file_index_.emplace(manifest.files[i].name, i);
  }

  void add_file(const JsonCursor& entry, const JsonCursor& list) {
    ManifestFile file = read_file_entry(entry);
    if (!file_index_.emplace(file.name, manifest_.files.size()).second) {
      list.refuse(fmt::format("names {} twice", file.name));
    }
    manifest_.files.push_back(std::move(file));
  }
  void add_piece(const JsonCursor& entry, const JsonCursor& list) {
    const ManifestPiece piece = read_piece_entry(entry, file_index_, manifest_.files);
    if (manifest_.pieces.add(piece)) return;
    list.refuse(fmt::format("gives the pieces of tensor {} different dtypes, shapes or groups", piece.name));
  }
  const ManifestFile* find_file(std::string_view name) const {
    const auto at = file_index_.find(name);
    return at == file_index_.end() ? nullptr : &manifest_.files[at->second];
  }

 private:
  Manifest& manifest_;
  FileIndex file_index_;
};

class TextInMemory final : public ReadableFile {
 public:
  explicit TextInMemory(std::string_view text) : text_(text) {}
  uint64_t size() const override { return text_.size(); }
  void read_at(uint64_t offset, void* to, uint64_t bytes) const override {
    require(offset <= text_.size() && bytes <= text_.size() - offset, "bytes {} to {} of a text of {}", offset,
            offset + bytes, text_.size());
    std::memcpy(to, text_.data() + offset, bytes);
  }

 private:
  std::string_view text_;
};

// The file ends with the digest of all before.
bool has_own_digest(const ReadableFile& file) {
  constexpr size_t kTail = kDigestBefore.size() + kDigestDigits + kDigestAfter.size();
  if (file.size() < kTail) return false;
  const uint64_t body = file.size() - kTail;
  Checksum checksum;
  std::string buffer(std::max(kBlockBytes, uint64_t(kTail)), '\0');
  for (uint64_t at = 0; at < body;) {
    const uint64_t bytes = std::min(kBlockBytes, body - at);
    file.read_at(at, buffer.data(), bytes);
    checksum.add(buffer.data(), bytes);
    at += bytes;
  }
  file.read_at(body, buffer.data(), kTail);
  return buffer.substr(0, kTail) == std::string(kDigestBefore) + checksum.hex() + std::string(kDigestAfter);
}

// What must be right before the entries are looked at: those of another version may be of another form.
int64_t read_version(const JsonCursor& root, const std::string& path, bool is_sound) {
  if (root["format"].as_string() != kFormat) root["format"].refuse("is another format; wanted \"octet checkpoint\"");
  const int64_t version = root["format_version"].as_int64();
  if (version > kNewestCheckpointFormat) {
    fail(ErrorKind::kCheckpoint,
         {.what = fmt::format("{} was written in format version {}; this program reads up to {}", path, version,
                              kNewestCheckpointFormat),
          .where = path,
          .why = is_sound ? "" : "the manifest does not match its own digest either; it may be damaged",
          .fix = "use the version of octet that wrote it, or a newer one"});
  }
  if (version < kOldestCheckpointFormat) {
    root["format_version"].refuse(fmt::format("is {}; this program reads from {}", version, kOldestCheckpointFormat));
  }
  if (!is_sound) root.refuse("does not match its own digest");
  return version;
}

constexpr std::string_view kFiles = "files", kTensors = "tensors";
constexpr uint64_t kMostManifestBytes = uint64_t(256) << 20;

}  // namespace

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

void write_manifest(const Manifest& manifest, const std::function<void(std::string_view)>& append) {
  Checksum checksum;
  std::string pending;
  const auto flush = [&] {
    append(pending);
    pending.clear();
  };
  const auto write = [&](std::string_view text) {
    checksum.add(text.data(), text.size());
    pending += text;
    if (pending.size() >= kBlockBytes) flush();
  };
  const CheckpointInfo& info = manifest.info;
  Json head = Json::object();
  head.set("format", kFormat)
      .set("format_version", manifest.format_version)
      .set("code_version", info.code_version)
      .set("run_id", info.run_id)
      .set("step", info.step)
      .set("tokens", info.tokens)
      .set("layout", info.layout)
      .set("rng", info.rng)
      .set("data_cursor", info.data_cursor)
      .set("meta", info.meta);
  const std::string text = head.text(/*line_depth=*/2);
  write(std::string_view(text).substr(0, text.size() - std::string_view("\n}").size()));
  const auto write_list = [&](std::string_view name, size_t count, auto&& entry) {
    write(fmt::format(",\n  \"{}\": [", name));
    for (size_t i = 0; i < count; ++i) write((i == 0 ? "\n    " : ",\n    ") + entry(i).text());
    write(count == 0 ? "]" : "\n  ]");
  };
  write_list(kFiles, manifest.files.size(), [&](size_t i) { return file_json(manifest.files[i]); });
  write_list(kTensors, manifest.pieces.size(), [&](size_t i) { return piece_json(manifest, manifest.pieces[i]); });
  const std::string digest = checksum.hex();
  pending += kDigestBefore;
  pending += digest;
  pending += kDigestAfter;
  flush();
}

Manifest read_manifest(const ReadableFile& file, const std::string& path) {
  const JsonSource source{.kind = ErrorKind::kCheckpoint, .file = path};
  const JsonLimits limits{.bytes = kMostManifestBytes};
  const bool is_sound = file.size() <= limits.bytes && has_own_digest(file);
  const Json list = Json::array();
  const JsonCursor files(list, source, std::string(kFiles)), tensors(list, source, std::string(kTensors));
  Manifest manifest;
  EntryReader entries(manifest);
  bool is_version_known = false;
  const auto know_version = [&](const Json& root) {
    if (is_version_known) return;
    manifest.format_version = read_version(JsonCursor(root, source), path, is_sound);
    is_version_known = true;
  };
  const Json json = parse_json_in_parts(
      file, source, {kFiles, kTensors},
      [&](const JsonPart& part) {
        know_version(part.before);
        const JsonCursor& in = part.member == kFiles ? files : tensors;
        if (part.key) in.refuse("is an object; wanted an array");
        if (part.member == kFiles) {
          entries.add_file(part.value, files);
        } else {
          entries.add_piece(part.value, tensors);
        }
      },
      limits);
  know_version(json);
  const JsonCursor root(json, source);
  root.allow_keys({"format", "format_version", "code_version", "run_id", "step", "tokens", "layout", "rng",
                   "data_cursor", "meta", kFiles, kTensors, "digest"});
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
  for (const std::string_view name : {kFiles, kTensors}) root[name].size();  // must be arrays

  check_ranges(manifest.pieces, tensors);
  require_tiling(manifest, path);
  const ManifestFile* blocks_file = entries.find_file(kBlocksName);
  if (blocks_file == nullptr) files.refuse(fmt::format("lacks {}", kBlocksName));
  const uint64_t blocks_bytes = manifest.pieces.num_blocks() * sizeof(uint64_t);
  if (blocks_file->bytes != blocks_bytes) {
    files.refuse(fmt::format("gives {} a size of {}; wanted {}", kBlocksName, blocks_file->bytes, blocks_bytes));
  }
  return manifest;
}

Manifest parse_manifest(std::string_view text, const std::string& path) {
  return read_manifest(TextInMemory(text), path);
}

void require_tiling(Manifest& manifest, const std::string& path) {
  manifest.pieces.sort_tensors();
  const JsonSource source{.kind = ErrorKind::kCheckpoint, .file = path};
  const Json list = Json::array();
  check_tiling(manifest.pieces, JsonCursor(list, source, std::string(kTensors)));
}

size_t num_manifest_parts(const Manifest& part) { return part.pieces.size() / kPiecesOfAPart + 1; }

std::string manifest_part_text(const Manifest& part, size_t index) {
  Json files = Json::array(), tensors = Json::array();
  if (index == 0) {
    for (const ManifestFile& file : part.files) files.push_back(file_json(file));
  }
  const size_t last = std::min((index + 1) * kPiecesOfAPart, part.pieces.size());
  for (size_t i = index * kPiecesOfAPart; i < last; ++i) tensors.push_back(piece_json(part, part.pieces[i]));
  return Json::object().set(kFiles, std::move(files)).set(kTensors, std::move(tensors)).text();
}

void append_manifest_part(Manifest& manifest, std::string_view text, const std::string& from) {
  const JsonSource source{.kind = ErrorKind::kCheckpoint, .file = from};
  const Json json = parse_json(text, source, {.bytes = kMostManifestBytes});
  const JsonCursor root(json, source), files = root[kFiles], tensors = root[kTensors];
  EntryReader entries(manifest);
  for (size_t i = 0; i < files.size(); ++i) entries.add_file(files.at(i), files);
  for (size_t i = 0; i < tensors.size(); ++i) entries.add_piece(tensors.at(i), tensors);
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
