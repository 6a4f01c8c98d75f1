// Numbers among the arguments of octet bench.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace octet {

// Up to nine decimal digits and nothing else.
inline std::optional<int64_t> whole_number(const std::string& text) {
  if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != std::string::npos) return {};
  return std::stoll(text);
}

// "128x512x256"; empty where that is no list of numbers of 1 or more.
inline std::vector<int64_t> whole_numbers(const std::string& text) {
  std::vector<int64_t> numbers;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('x', begin), text.size());
    const auto number = whole_number(text.substr(begin, end - begin));
    if (!number || *number < 1) return {};
    numbers.push_back(*number);
    begin = end + 1;
  }
  return numbers;
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
