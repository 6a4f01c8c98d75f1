#include "tools/train/config_reference.h"

#include "tools/train/config_keys.h"

namespace octet {
namespace {

// '|' ends a cell of a Markdown table.
std::string cell(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '|' ? std::string("\\|") : std::string(1, c);
  return out;
}

std::string rows_of(const std::vector<ConfigKey>& keys, const std::string& section) {
  std::string rows;
  for (const ConfigKey& key : keys) {
    if (key.parent != section || key.is_section) continue;
    rows += fmt::format("| `{}` | {} | `{}` | {} |\n", key.name, cell(key.type), cell(key.print()),
                        cell(key.documentation));
  }
  return rows;
}

}  // namespace

std::string configuration_reference() {
  Config config;
  const std::vector<ConfigKey> keys = config_keys(config);
  constexpr const char* kHead = "| key | value | default | meaning |\n| --- | --- | --- | --- |\n";
  std::string text =
      "# Configuration\n"
      "\n"
      "<!-- Written by `octet docs configuration > docs/configuration.md`. Change the structs, not this file. -->\n"
      "\n"
      "One YAML file is one complete run. Every key has a default except `data.path`. `octet check FILE` reports all\n"
      "mistakes in a file at once and prints the size of the run; `--set section.key=value`, given as often as "
      "needed,\n"
      "replaces a value; `--print-config` shows every value and where it comes from.\n"
      "\n"
      "The YAML is a strict part of the language: maps, lists, plain and quoted texts, comments. Anchors, aliases,\n"
      "tags, merge keys, tabs, duplicate and unknown keys are errors. Numbers are decimal and finite (`3e-4`, `0.1`,\n"
      "`1e6` for an integer); booleans are `true` and `false`; a number in quotes is a text. Lists are written\n"
      "`[norm, swiglu]`. A file has at most 1 MiB.\n";
  text += "\n## At the left margin\n\n" + std::string(kHead) + rows_of(keys, "");
  for (const ConfigKey& key : keys) {
    if (!key.is_section) continue;
    text += fmt::format("\n## {}\n\n{}.\n\n{}{}", key.path, key.documentation, kHead, rows_of(keys, key.path));
    // A sentence begins with a capital.
    const size_t at = text.find(key.documentation, text.rfind("\n## "));
    if (text[at] >= 'a' && text[at] <= 'z') text[at] = char(text[at] - 'a' + 'A');
  }
  return text;
}

}  // namespace octet
