#include "core/io/safetensors_index.h"

#include <map>

#include "core/io/json.h"

namespace octet {

std::string fault_of_file_name(std::string_view name) {
  if (name.empty()) return "is empty";
  if (name.size() > 255) return fmt::format("has {} bytes; a file name has at most 255", name.size());
  if (name[0] == '.') return "starts with a dot";
  for (const char c : name) {
    const bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
                          c == '-' || c == '_' || c == '+';
    if (!is_plain) return "holds something other than letters, digits, '.', '-', '_' and '+'";
  }
  return "";
}

std::vector<std::unique_ptr<SafetensorsFile>> open_safetensors_index(FileSystem& fs, const std::string& directory,
                                                                     const std::string& index_name, ErrorKind kind) {
  const JsonSource source{.kind = kind, .file = join_path(directory, index_name)};
  const Json index = read_json(fs, source.file, kind);
  const JsonCursor weight_map = JsonCursor(index, source)["weight_map"];
  if (weight_map.value().if_object() == nullptr) weight_map.refuse("is no object");
  std::map<std::string, std::vector<const std::string*>> tensors_of;
  for (const auto& [name, value] : *weight_map.value().if_object()) {
    const std::string fault = fault_of_tensor_name(name);
    if (!fault.empty()) weight_map.refuse(fmt::format("has a tensor whose name {}", fault));
    const JsonCursor entry = weight_map[name];
    const std::string fault_of_file = fault_of_file_name(entry.as_string());
    if (!fault_of_file.empty()) entry.refuse(fmt::format("is a file name that {}", fault_of_file));
    tensors_of[entry.as_string()].push_back(&name);
    if (tensors_of.size() > kMaxSafetensorsShards) {
      weight_map.refuse(fmt::format("names more than {} files", kMaxSafetensorsShards));
    }
  }
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  for (const auto& [file_name, names] : tensors_of) {
    const std::string path = join_path(directory, file_name);
    if (!fs.exists(path) || !fs.info(path).is_regular) {
      weight_map.refuse(
          fmt::format("names {}, which is {}", file_name, fs.exists(path) ? "no regular file" : "missing"));
    }
    files.push_back(std::make_unique<SafetensorsFile>(fs, path, kind));
    for (const std::string* name : names) {
      if (files.back()->find(*name) == nullptr) {
        weight_map.refuse(fmt::format("puts tensor {} into {}, which has no such tensor", *name, file_name));
      }
    }
    if (files.back()->tensors().size() != names.size()) {
      weight_map.refuse(fmt::format("names {} tensors of {}, which holds {}", names.size(), file_name,
                                    files.back()->tensors().size()));
    }
  }
  return files;
}

}  // namespace octet
