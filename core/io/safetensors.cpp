#include "core/io/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>
#include <set>

#include "core/io/json.h"

namespace octet {

static_assert(std::endian::native == std::endian::little, "tensors are stored as they lie in memory, little-endian");

namespace {

struct StoredDTypeInfo {
  std::string_view name;
  int64_t size;
  std::optional<DType> in_memory;
};
constexpr StoredDTypeInfo kStoredDTypes[] = {
    {"F32", 4, DType::kFloat32},        {"BF16", 2, DType::kBFloat16}, {"F8_E4M3", 1, DType::kFloat8E4M3},
    {"F8_E5M2", 1, DType::kFloat8E5M2}, {"F8_E8M0", 1, std::nullopt},  {"I32", 4, DType::kInt32},
    {"I64", 8, DType::kInt64},          {"U8", 1, DType::kUInt8},      {"U64", 8, std::nullopt}};

constexpr size_t kLongestName = 512;
constexpr uint64_t kLengthBytes = 8;

// A name for a message: short, and safe for a terminal.
std::string shown(std::string_view name) {
  std::string text(name.substr(0, 80));
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
  }
  return name.size() > 80 ? text + "..." : text;
}

// Takes the header's events straight into entries: no tree is built, so that memory stays near the header's size.
class HeaderReader final : public JsonEvents {
 public:
  HeaderReader(std::deque<SafetensorsFile::Tensor>& tensors, std::vector<std::pair<std::string, std::string>>& metadata,
               uint64_t data_begin, uint64_t data_bytes)
      : tensors_(tensors), metadata_(metadata), data_begin_(data_begin), data_bytes_(data_bytes) {}

  void null() override { refuse_value("null"); }
  void boolean(bool) override { refuse_value("a boolean"); }
  void real(double) override { refuse_value("a number with a fraction"); }
  void large_integer(uint64_t) override { refuse_value("an integer above 2^63"); }
  void integer(int64_t value) override {
    if (state_ == State::kShape) {
      if (value <= 0) refuse_tensor(fmt::format("has a size of {}; wanted 1 or more", value));
      if (rank_ == size_t(kMaxRank)) refuse_tensor(fmt::format("has more than {} axes", kMaxRank));
      sizes_[rank_++] = value;
    } else if (state_ == State::kOffsets) {
      if (value < 0) refuse_tensor(fmt::format("has an offset of {}; wanted 0 or more", value));
      if (num_offsets_ == 2) refuse_tensor("has more than two data_offsets");
      offsets_[num_offsets_++] = uint64_t(value);
    } else {
      refuse_value("an integer");
    }
  }
  void string(std::string& value) override {
    if (state_ == State::kMetadata) {
      metadata_.back().second = std::move(value);
    } else if (state_ == State::kTensor && field_ == "dtype") {
      dtype_ = stored_dtype_named(value);
      if (!dtype_) refuse_tensor(fmt::format("has dtype \"{}\"; wanted {}", shown(value), known_dtypes()));
    } else {
      refuse_value("a string");
    }
  }
  void begin_array() override {
    if (state_ == State::kTensor && field_ == "shape") {
      state_ = State::kShape;
    } else if (state_ == State::kTensor && field_ == "data_offsets") {
      state_ = State::kOffsets;
    } else {
      refuse_value("an array");
    }
  }
  void end_array() override { state_ = State::kTensor; }
  void begin_object() override {
    if (state_ == State::kStart) {
      state_ = State::kTop;
    } else if (state_ == State::kTop && is_metadata_) {
      state_ = State::kMetadata;
    } else if (state_ == State::kTop) {
      state_ = State::kTensor;
      dtype_.reset();
      rank_ = num_offsets_ = 0;
      fields_ = 0;
      field_.clear();
    } else {
      refuse_value("an object");
    }
  }
  void key(std::string& name) override {
    if (state_ == State::kTop) {
      is_metadata_ = name == "__metadata__";
      if (is_metadata_) {
        if (has_metadata_) refuse("the key \"__metadata__\" stands twice");
        has_metadata_ = true;
        return;
      }
      name_ = std::move(name);
      const std::string fault = fault_of_tensor_name(name_);
      if (!fault.empty()) refuse(fmt::format("a tensor is named \"{}\": the name {}", shown(name_), fault));
      if (tensors_.size() == kMaxSafetensorsTensors) {
        refuse(fmt::format("has more than {} tensors in one file", kMaxSafetensorsTensors));
      }
    } else if (state_ == State::kMetadata) {
      for (const auto& [known, value] : metadata_) {
        if (known == name) refuse(fmt::format("the metadata key \"{}\" stands twice", shown(name)));
      }
      // Every file that is known has a handful; the limit keeps the search above short.
      if (metadata_.size() == 1024) refuse("has more than 1024 metadata keys");
      metadata_.emplace_back(std::move(name), std::string());
    } else {
      constexpr std::string_view kFields[] = {"dtype", "shape", "data_offsets"};
      const auto field = std::find(std::begin(kFields), std::end(kFields), name);
      if (field == std::end(kFields)) refuse_tensor(fmt::format("has an unknown key \"{}\"", shown(name)));
      const unsigned bit = 1u << (field - std::begin(kFields));
      if ((fields_ & bit) != 0) refuse_tensor(fmt::format("has the key \"{}\" twice", name));
      fields_ |= bit;
      field_ = std::move(name);
    }
  }
  void end_object() override {
    if (state_ == State::kTensor) {
      add_tensor();
      state_ = State::kTop;
    } else if (state_ == State::kMetadata) {
      state_ = State::kTop;
    } else {
      state_ = State::kEnd;
    }
  }
  bool is_whole() const { return state_ == State::kEnd; }
  uint64_t covered_bytes() const { return covered_; }

 private:
  enum class State { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kEnd };

  static std::string known_dtypes() {
    std::string names;
    for (const auto& info : kStoredDTypes) names += (names.empty() ? "" : ", ") + std::string(info.name);
    return names;
  }
  [[noreturn]] void refuse_tensor(std::string_view what) const {
    refuse(fmt::format("tensor \"{}\" {}", shown(name_), what));
  }
  [[noreturn]] void refuse_value(std::string_view came) const {
    switch (state_) {
      case State::kStart:
      case State::kEnd:
        refuse(fmt::format("the header is {}; wanted an object", came));
      case State::kMetadata:
        refuse(fmt::format("the metadata key \"{}\" is {}; wanted a string",
                           metadata_.empty() ? "" : shown(metadata_.back().first), came));
      case State::kTop:
        if (is_metadata_) refuse(fmt::format("__metadata__ is {}; wanted an object", came));
        refuse_tensor(fmt::format("is {}; wanted an object", came));
      case State::kTensor:
        refuse_tensor(fmt::format("has {} as its {}; wanted {}", came, field_,
                                  field_ == "dtype" ? "a string" : "an array of integers"));
      case State::kShape:
        refuse_tensor(fmt::format("has {} in its shape; wanted integers", came));
      case State::kOffsets:
        refuse_tensor(fmt::format("has {} in its data_offsets; wanted two integers", came));
    }
    refuse("is not a safetensors header");
  }
  void add_tensor() {
    if (fields_ != 7) refuse_tensor("lacks one of dtype, shape and data_offsets");
    if (num_offsets_ != 2) refuse_tensor("has one or no data_offsets; wanted two");
    if (offsets_[0] > offsets_[1]) {
      refuse_tensor(fmt::format("ends at byte {}, before it begins at {}", offsets_[1], offsets_[0]));
    }
    if (offsets_[1] > data_bytes_) {
      refuse_tensor(fmt::format("ends at byte {} of the data; there are {}", offsets_[1], data_bytes_));
    }
    if (offsets_[0] != covered_) {
      refuse_tensor(fmt::format("begins at byte {} of the data; wanted {}, where the tensor before it ends",
                                offsets_[0], covered_));
    }
    uint64_t bytes = uint64_t(size_of(*dtype_));
    for (size_t axis = 0; axis < rank_; ++axis) {
      if (__builtin_mul_overflow(bytes, uint64_t(sizes_[axis]), &bytes)) {
        refuse_tensor("has a shape of more than 2^64 bytes");
      }
    }
    if (bytes != offsets_[1] - offsets_[0]) {
      refuse_tensor(fmt::format("has {} bytes by its data_offsets and {} by its dtype and shape",
                                offsets_[1] - offsets_[0], bytes));
    }
    covered_ = offsets_[1];
    tensors_.push_back({std::move(name_), *dtype_, shape(), data_begin_ + offsets_[0], data_begin_ + offsets_[1]});
  }
  Shape shape() const {
    switch (rank_) {
      case 0:
        return {};
      case 1:
        return {sizes_[0]};
      case 2:
        return {sizes_[0], sizes_[1]};
      case 3:
        return {sizes_[0], sizes_[1], sizes_[2]};
      default:
        return {sizes_[0], sizes_[1], sizes_[2], sizes_[3]};
    }
  }

  std::deque<SafetensorsFile::Tensor>& tensors_;
  std::vector<std::pair<std::string, std::string>>& metadata_;
  const uint64_t data_begin_, data_bytes_;
  State state_ = State::kStart;
  bool is_metadata_ = false, has_metadata_ = false;
  std::string name_, field_;
  std::optional<StoredDType> dtype_;
  unsigned fields_ = 0;
  size_t rank_ = 0, num_offsets_ = 0;
  std::array<int64_t, kMaxRank> sizes_{};
  std::array<uint64_t, 2> offsets_{};
  uint64_t covered_ = 0;
};

}  // namespace

std::string_view name_of(StoredDType dtype) { return kStoredDTypes[size_t(dtype)].name; }
int64_t size_of(StoredDType dtype) { return kStoredDTypes[size_t(dtype)].size; }
std::optional<DType> in_memory(StoredDType dtype) { return kStoredDTypes[size_t(dtype)].in_memory; }

std::optional<StoredDType> stored_dtype_named(std::string_view name) {
  for (size_t i = 0; i < std::size(kStoredDTypes); ++i) {
    if (kStoredDTypes[i].name == name) return StoredDType(i);
  }
  return std::nullopt;
}

StoredDType stored(DType dtype) {
  for (size_t i = 0; i < std::size(kStoredDTypes); ++i) {
    if (kStoredDTypes[i].in_memory == dtype) return StoredDType(i);
  }
  require(false, "stored: {} has no form in a file", dtype);
  return StoredDType::kU8;
}

std::string fault_of_tensor_name(std::string_view name) {
  if (name.empty()) return "is empty";
  if (name.size() > kLongestName) return fmt::format("has {} bytes; at most {} are read", name.size(), kLongestName);
  if (name == "__metadata__") return "is the format's own word";
  if (!is_utf8(name)) return "is not UTF-8";
  if (name.find("..") != std::string_view::npos) return "holds \"..\"";
  for (const char c : name) {
    if (c == '/' || c == '\\') return "holds a slash";
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return "holds a control character";
  }
  return "";
}

SafetensorsFile::SafetensorsFile(FileSystem& fs, const std::string& path, ErrorKind kind)
    : path_(path), kind_(kind), file_(fs.open(path)) {
  const auto refuse = [&](uint64_t byte, const std::string& what) {
    fail(kind_, {.what = fmt::format("{}: {}", path_, what),
                 .where = fmt::format("{}, byte {}", path_, byte),
                 .why = "",
                 .fix = "the file is damaged or no safetensors file; write or fetch it again"});
  };
  const uint64_t file_bytes = file_->size();
  if (file_bytes < kLengthBytes) refuse(0, fmt::format("has {} bytes; wanted at least 8", file_bytes));
  uint64_t header_bytes = 0;
  file_->read_at(0, &header_bytes, kLengthBytes);
  if (header_bytes > kMaxSafetensorsHeaderBytes) {
    refuse(0, fmt::format("its header has {} bytes; at most {} are read", header_bytes, kMaxSafetensorsHeaderBytes));
  }
  if (header_bytes > file_bytes - kLengthBytes) {
    refuse(0, fmt::format("its header has {} bytes and the file {} after the length", header_bytes,
                          file_bytes - kLengthBytes));
  }
  if (header_bytes < 2) refuse(0, fmt::format("its header has {} bytes; wanted at least {{}}", header_bytes));
  std::string header(header_bytes, '\0');
  file_->read_at(kLengthBytes, header.data(), header_bytes);
  if (header[0] != '{') refuse(kLengthBytes, "its header does not start with '{'");

  const uint64_t data_begin = kLengthBytes + header_bytes, data_bytes = file_bytes - data_begin;
  HeaderReader reader(tensors_, metadata_, data_begin, data_bytes);
  parse_json_events(header, {.kind = kind_, .file = path_, .offset = kLengthBytes}, reader,
                    {.bytes = kMaxSafetensorsHeaderBytes, .depth = 4, .values = uint64_t(1) << 24});
  if (!reader.is_whole()) refuse(kLengthBytes, "its header is no object");
  if (reader.covered_bytes() != data_bytes) {
    refuse(data_begin + reader.covered_bytes(),
           fmt::format("{} bytes after the last tensor belong to none", data_bytes - reader.covered_bytes()));
  }
  by_name_.resize(tensors_.size());
  std::iota(by_name_.begin(), by_name_.end(), 0u);
  std::sort(by_name_.begin(), by_name_.end(),
            [&](uint32_t a, uint32_t b) { return tensors_[a].name < tensors_[b].name; });
  const auto twice = std::adjacent_find(by_name_.begin(), by_name_.end(),
                                        [&](uint32_t a, uint32_t b) { return tensors_[a].name == tensors_[b].name; });
  if (twice != by_name_.end()) {
    refuse(kLengthBytes, fmt::format("tensor \"{}\" stands twice", shown(tensors_[*twice].name)));
  }
}

const SafetensorsFile::Tensor* SafetensorsFile::find(std::string_view name) const {
  const auto at =
      std::lower_bound(by_name_.begin(), by_name_.end(), name,
                       [&](uint32_t index, std::string_view wanted) { return tensors_[index].name < wanted; });
  return at != by_name_.end() && tensors_[*at].name == name ? &tensors_[*at] : nullptr;
}

void SafetensorsFile::read(const Tensor& tensor, uint64_t offset, void* to, uint64_t bytes) const {
  const uint64_t size = tensor.end - tensor.begin;
  require(offset <= size && bytes <= size - offset, "{}: bytes {} to {} of tensor {}; it has {}", path_, offset,
          offset + bytes, tensor.name, size);
  file_->read_at(tensor.begin + offset, to, bytes);
}

SafetensorsWriter::SafetensorsWriter(FileSystem& fs, const std::string& path, std::vector<Tensor> tensors,
                                     const std::vector<std::pair<std::string, std::string>>& metadata,
                                     std::string_view binding)
    : path_(path), checksum_(binding) {
  Json header = Json::object();
  if (!metadata.empty()) {
    Json texts = Json::object();
    for (const auto& [key, value] : metadata) texts.set(key, value);
    header.set("__metadata__", std::move(texts));
  }
  std::string text = header.text();
  text.pop_back();  // the closing brace comes after the tensors
  std::set<std::string_view> names;
  uint64_t offset = 0;
  require(tensors.size() <= kMaxSafetensorsTensors, "{}: {} tensors; wanted at most {} in one file", path,
          tensors.size(), kMaxSafetensorsTensors);
  for (const Tensor& tensor : tensors) {
    const std::string fault = fault_of_tensor_name(tensor.name);
    require(fault.empty(), "{}: a tensor is named \"{}\": the name {}", path, shown(tensor.name), fault);
    require(names.insert(tensor.name).second, "{}: tensor {} is given twice", path, tensor.name);
    require(tensor.shape.num_elements() > 0, "{}: tensor {} is {}; wanted at least one element", path, tensor.name,
            tensor.shape);
    Json shape = Json::array();
    for (int axis = 0; axis < tensor.shape.rank(); ++axis) shape.push_back(tensor.shape[axis]);
    const uint64_t end = offset + uint64_t(tensor.shape.num_elements() * size_of(tensor.dtype));
    Json offsets = Json::array();
    offsets.push_back(offset).push_back(end);
    Json entry = Json::object();
    entry.set("dtype", name_of(tensor.dtype)).set("shape", std::move(shape)).set("data_offsets", std::move(offsets));
    if (text.size() > 1) text += ", ";
    text += Json(tensor.name).text() + ": " + entry.text();
    offset = end;
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');  // tensors begin at multiples of 8
  const uint64_t length = text.size();
  require(length <= kMaxSafetensorsHeaderBytes, "{}: a header of {} bytes for {} tensors; wanted at most {}", path,
          length, tensors.size(), kMaxSafetensorsHeaderBytes);
  text.insert(0, reinterpret_cast<const char*>(&length), kLengthBytes);
  header_bytes_ = text.size();
  file_bytes_ = header_bytes_ + offset;
  file_ = fs.create(path);
  append(text.data(), text.size());
}

void SafetensorsWriter::append(const void* from, uint64_t bytes) {
  require(bytes <= file_bytes_ - written_, "{}: {} bytes after {} of {}; wanted at most the rest", path_, bytes,
          written_, file_bytes_);
  checksum_.add(from, bytes);
  file_->append(from, bytes);
  written_ += bytes;
}

std::string SafetensorsWriter::finish() {
  require(written_ == file_bytes_, "{}: finished after {} of {} bytes; wanted all tensors", path_, written_,
          file_bytes_);
  file_->sync();
  file_.reset();
  return checksum_.hex();
}

}  // namespace octet
