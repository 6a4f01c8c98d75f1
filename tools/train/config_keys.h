// A configuration as a flat list of keys with their conversions from and to text. The conversions take no locale, no
// unit, no other base and no second spelling: what is not exactly meant is refused.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tools/train/config.h"

namespace octet {

// A scalar as it was written.
struct ScalarText {
  std::string text;
  bool is_quoted = false;
};

// Why a text cannot be the value of a key: "is 010, a number with a leading zero"; and what to write instead, where
// one text is plainly meant.
struct Mistake {
  std::string what;
  std::string corrected;
  size_t index = 0;  // of the scalar, in a list
};

struct ConfigKey {
  std::string path;           // "model.moe.top_k"
  std::string parent;         // "model.moe"; "" at the root
  std::string name;           // "top_k"
  std::string documentation;  // with the unit
  std::string type;           // "an integer"
  bool is_section = false;
  bool is_list = false;
  // One scalar, or all of a list's. Changes the configuration only where there is no mistake.
  std::function<std::optional<Mistake>(const std::vector<ScalarText>&)> assign;
  std::function<std::string()> print;  // as YAML that assign takes back unchanged
};

// In the order of the file, a section before its members. The functions refer to `config`.
std::vector<ConfigKey> config_keys(Config& config);

const ConfigKey* find_key(const std::vector<ConfigKey>& keys, std::string_view path);

// The key that `name` inside the section `parent` may have meant: one of the same section rather than one elsewhere.
// Null where none is plausible.
const ConfigKey* nearest_key(const std::vector<ConfigKey>& keys, std::string_view parent, std::string_view name);

// Conversions, exported for tests. The value, or the mistake.
std::optional<Mistake> parse_integer(const ScalarText& scalar, int64_t& value);
std::optional<Mistake> parse_number(const ScalarText& scalar, double& value);
std::optional<Mistake> parse_number(const ScalarText& scalar, float& value);
std::optional<Mistake> parse_boolean(const ScalarText& scalar, bool& value);

// `text` as a YAML scalar, quoted where it must be.
std::string quoted_yaml(std::string_view text);

}  // namespace octet
