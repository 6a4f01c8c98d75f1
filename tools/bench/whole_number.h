// A number of an argument of octet bench.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace octet {

// Up to nine decimal digits and nothing else.
inline std::optional<int64_t> whole_number(const std::string& text) {
  if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != std::string::npos) return {};
  return std::stoll(text);
}

}  // namespace octet
