#include "core/io/safetensors_index.h"

#include <algorithm>
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

namespace {

constexpr std::string_view kMember = "weight_map";

[[noreturn]] void refuse(const std::string& path, ErrorKind kind, std::string_view what) {
  const JsonSource source{.kind = kind, .file = path};
  JsonCursor(Json(), source, std::string(kMember)).refuse(what);
}

// What an index says: the tensors' names in one string.
struct Entries {
  struct Entry {
    uint32_t name_begin, name_bytes;
    uint32_t file;  // as in `files`
  };
  std::string_view name(const Entry& entry) const {
    return std::string_view(names).substr(entry.name_begin, entry.name_bytes);
  }

  std::string names;
  std::vector<Entry> all;
  std::map<std::string, uint32_t, std::less<>> files;  // numbered in the order of the index
};

Entries read_entries(FileSystem& fs, const std::string& path, ErrorKind kind) {
  Entries entries;
  read_safetensors_index(fs, path, kind, [&](std::string_view tensor, std::string_view file) {
    auto at = entries.files.find(file);
    if (at == entries.files.end()) at = entries.files.emplace(file, uint32_t(entries.files.size())).first;
    if (entries.files.size() > kMaxSafetensorsShards) {
      refuse(path, kind, fmt::format("names more than {} files", kMaxSafetensorsShards));
    }
    entries.all.push_back({uint32_t(entries.names.size()), uint32_t(tensor.size()), at->second});
    entries.names += tensor;
  });
  auto& all = entries.all;
  std::sort(all.begin(), all.end(), [&](const auto& a, const auto& b) { return entries.name(a) < entries.name(b); });
  const auto twice = std::adjacent_find(
      all.begin(), all.end(), [&](const auto& a, const auto& b) { return entries.name(a) == entries.name(b); });
  if (twice != all.end()) {
    refuse(path, kind, fmt::format("is no map: \"{}\" stands twice in it", entries.name(*twice)));
  }
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.file < b.file; });
  return entries;
}

}  // namespace

void read_safetensors_index(FileSystem& fs, const std::string& path, ErrorKind kind,
                            const std::function<void(std::string_view tensor, std::string_view file)>& take) {
  const JsonSource source{.kind = kind, .file = path};
  const auto take_part = [&](const JsonPart& part) {
    if (!part.key) refuse(path, kind, "is no object");
    const std::string fault = fault_of_tensor_name(*part.key);
    if (!fault.empty()) refuse(path, kind, fmt::format("has a tensor whose name {}", fault));
    const std::string& file = part.value.as_string();
    const std::string fault_of_file = fault_of_file_name(file);
    if (!fault_of_file.empty()) part.value.refuse(fmt::format("is a file name that {}", fault_of_file));
    take(*part.key, file);
  };
  const Json index = parse_json_in_parts(*fs.open(path), source, {kMember}, take_part);
  if (JsonCursor(index, source)[kMember].value().if_object() == nullptr) refuse(path, kind, "is no object");
}

std::vector<std::unique_ptr<SafetensorsFile>> open_safetensors_index(FileSystem& fs, const std::string& directory,
                                                                     const std::string& index_name, ErrorKind kind) {
  const std::string index_path = join_path(directory, index_name);
  const Entries entries = read_entries(fs, index_path, kind);
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  for (const auto& [file_name, number] : entries.files) {
    const std::string path = join_path(directory, file_name);
    if (!fs.exists(path) || !fs.info(path).is_regular) {
      refuse(index_path, kind,
             fmt::format("names {}, which is {}", file_name, fs.exists(path) ? "no regular file" : "missing"));
    }
    files.push_back(std::make_unique<SafetensorsFile>(fs, path, kind));
    const auto first = std::partition_point(entries.all.begin(), entries.all.end(),
                                            [number = number](const auto& entry) { return entry.file < number; });
    const auto last =
        std::find_if(first, entries.all.end(), [number = number](const auto& entry) { return entry.file != number; });
    for (auto entry = first; entry != last; ++entry) {
      if (files.back()->find(entries.name(*entry)) == nullptr) {
        refuse(index_path, kind,
               fmt::format("puts tensor {} into {}, which has no such tensor", entries.name(*entry), file_name));
      }
    }
    if (files.back()->tensors().size() != size_t(last - first)) {
      refuse(index_path, kind,
             fmt::format("names {} tensors of {}, which holds {}", last - first, file_name,
                         files.back()->tensors().size()));
    }
  }
  return files;
}

}  // namespace octet
