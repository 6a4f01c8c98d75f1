// The safetensors format (huggingface/safetensors, README "Format"): 8 bytes little-endian header length, a JSON header
//   {"__metadata__": {"key": "text"}, "name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
// padded with spaces, then the tensors' bytes, little-endian, rows contiguous; offsets count from the end of the
// header. The reader is stricter than the reference: the header starts with '{', no key stands twice, tensors are
// listed in the order of their bytes, without holes, none is empty, and a name has at most 512 bytes of UTF-8 without
// '/', "..", or control characters. Everything is checked before it is used, and before memory is taken for it; files
// are read by pread, so that one that shrinks meanwhile is an error and no signal.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/error.h"
#include "core/base/file_system.h"
#include "core/base/view.h"
#include "core/io/checksum.h"

namespace octet {

// The element types of a file. E8M0 is a scale of 2^(code - 127) (OCP Microscaling Formats 1.0, section 5.4.1).
enum class StoredDType : uint8_t { kF32, kBF16, kF8E4M3, kF8E5M2, kF8E8M0, kI32, kI64, kU8, kU64 };

std::string_view name_of(StoredDType dtype);  // as the format spells it: "F32", "F8_E4M3"
std::optional<StoredDType> stored_dtype_named(std::string_view name);
int64_t size_of(StoredDType dtype);
StoredDType stored(DType dtype);
// Empty for a dtype that tensors do not have: F8_E8M0 and U64.
std::optional<DType> in_memory(StoredDType dtype);

// Why this cannot be a tensor's name; empty where it can.
std::string fault_of_tensor_name(std::string_view name);

inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;
inline constexpr uint64_t kMaxSafetensorsTensors = uint64_t(1) << 18;  // in one file

class SafetensorsFile {
 public:
  struct Tensor {
    std::string name;
    StoredDType dtype;
    Shape shape;
    uint64_t begin = 0, end = 0;  // bytes from the start of the file
  };

  // kind: of the errors about the content (kCheckpoint, kData).
  SafetensorsFile(FileSystem& fs, const std::string& path, ErrorKind kind = ErrorKind::kCheckpoint);

  const std::string& path() const { return path_; }
  const std::deque<Tensor>& tensors() const { return tensors_; }  // in the order of their bytes
  const std::vector<std::pair<std::string, std::string>>& metadata() const { return metadata_; }
  const Tensor* find(std::string_view name) const;
  // The bytes [offset, offset + bytes) of a tensor.
  void read(const Tensor& tensor, uint64_t offset, void* to, uint64_t bytes) const;

 private:
  std::string path_;
  ErrorKind kind_;
  std::unique_ptr<ReadableFile> file_;
  std::deque<Tensor> tensors_;  // a deque grows without a second copy
  std::vector<uint32_t> by_name_;
  std::vector<std::pair<std::string, std::string>> metadata_;
};

// Writes a file as its tensors' bytes come, in the order of `tensors`.
class SafetensorsWriter {
 public:
  struct Tensor {
    std::string name;
    StoredDType dtype;
    Shape shape;
  };

  // Creates the file, which must not exist, and writes its header. `binding` starts the checksum of the file.
  SafetensorsWriter(FileSystem& fs, const std::string& path, std::vector<Tensor> tensors,
                    const std::vector<std::pair<std::string, std::string>>& metadata, std::string_view binding = "");

  uint64_t header_bytes() const { return header_bytes_; }  // where the first tensor's bytes begin
  uint64_t file_bytes() const { return file_bytes_; }
  // The next bytes; a tensor may come in pieces.
  void append(const void* from, uint64_t bytes);
  // Every tensor must be there; syncs, and gives the checksum of the whole file.
  std::string finish();

 private:
  std::string path_;
  uint64_t header_bytes_ = 0, file_bytes_ = 0, written_ = 0;
  Checksum checksum_;
  std::unique_ptr<WritableFile> file_;
};

}  // namespace octet
