// A model in several safetensors files (Hugging Face: model.safetensors.index.json, whose weight_map names the file of
// each tensor). The index is not trusted: a file name is one path component, each file exists, holds exactly the
// tensors that the index gives it, and no tensor is in two files.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/safetensors.h"

namespace octet {

inline constexpr uint64_t kMaxSafetensorsShards = 4096;

// Why this cannot be the name of a file inside a directory that was written elsewhere; empty where it can. One
// component, visible, plain: letters, digits, '.', '-', '_' and '+'.
std::string fault_of_file_name(std::string_view name);

inline constexpr std::string_view kSafetensorsIndexName = "model.safetensors.index.json";

// The entries of the index at `path`, in its order: a tensor and its file, whose names are checked. Keeps none of them.
void read_safetensors_index(FileSystem& fs, const std::string& path, ErrorKind kind,
                            const std::function<void(std::string_view tensor, std::string_view file)>& take);

// The files that directory/index_name names, opened and checked.
std::vector<std::unique_ptr<SafetensorsFile>> open_safetensors_index(
    FileSystem& fs, const std::string& directory, const std::string& index_name = std::string(kSafetensorsIndexName),
    ErrorKind kind = ErrorKind::kCheckpoint);

}  // namespace octet
