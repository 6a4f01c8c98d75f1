// Numbers among the arguments of octet bench.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace octet {

// Up to nine decimal digits and nothing else.
inline std::optional<int64_t> whole_number(const std::string& text) {
  if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != std::string::npos) return {};
  return std::stoll(text);
}

// Takes "key=N", N of 1 or more, where the key is one of these; else returns false.
inline bool take_number(const std::string& arg, std::initializer_list<std::pair<std::string_view, int64_t*>> keys) {
  const size_t equals = arg.find('=');
  if (equals == std::string::npos) return false;
  const auto number = whole_number(arg.substr(equals + 1));
  for (const auto& [key, value] : keys) {
    if (key != std::string_view(arg).substr(0, equals) || !number || *number < 1) continue;
    *value = *number;
    return true;
  }
  return false;
}

}  // namespace octet
