// Reads a run's configuration from a small, strict part of YAML, and writes it back. The only file that knows YAML.
//
// Accepted: one document of at most 1 MiB of UTF-8; block and flow maps and lists; plain, quoted and block scalars;
// comments. Refused, each with file:line:column, the expected form and a corrected line where one is plain: unknown and
// duplicate keys; anchors, aliases, tags, merge keys and directives; a second document; tabs, byte order marks, control
// characters and bytes that are not UTF-8; numbers in quotes, with leading zeros, signs of '+', '_' or a unit; booleans
// other than true and false; numbers that are not finite, not whole where an integer is wanted, or out of range.
// No conversion depends on the locale.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/file_system.h"
#include "tools/train/config.h"

namespace octet {

inline constexpr uint64_t kMaxConfigBytes = 1 << 20;

// Where each key's value comes from: "configs/tiny.yaml:7", "--set" or "default".
using Origins = std::map<std::string, std::string>;

// Further checks of a configuration that could be read, whose findings join the others; keys in full.
using ConfigCheck = std::function<void(const Config&, Problems&)>;

// Reads `path`, applies the overrides ("optim.lr=3e-4", in order; a text is taken as it stands, a list is [a, b]),
// and validates. Throws one Error(kConfig) that lists everything found.
Config load_config(FileSystem& files, const std::string& path, const std::vector<std::string>& overrides = {},
                   Origins* origins = nullptr, const ConfigCheck& check = {});

// The same for a text; `name` stands for the file in messages.
Config read_config(std::string_view text, const std::string& name, const std::vector<std::string>& overrides = {},
                   Origins* origins = nullptr, const ConfigCheck& check = {});

// YAML that read_config takes back to the same configuration, every key on its own line; with origins, each followed
// by a comment that says where its value comes from.
std::string print_config(const Config& config, const Origins* origins = nullptr);

}  // namespace octet
