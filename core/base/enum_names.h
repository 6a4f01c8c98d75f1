// The spelling of an enumeration in configurations, checkpoints and messages. Beside the enumeration stands
//   template <> struct EnumNames<Color> {
//     static constexpr std::pair<Color, std::string_view> values[] = {{Color::kRed, "red"}, {Color::kBlue, "blue"}};
//   };
// and name_of, parse_enum and list_names follow from it.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace octet {

template <class E>
struct EnumNames;

template <class E>
concept NamedEnum = requires {
  EnumNames<E>::values;
};

template <NamedEnum E>
constexpr std::string_view name_of(E value) {
  for (const auto& [each, name] : EnumNames<E>::values) {
    if (each == value) return name;
  }
  return "?";
}

// Nothing where no value has this name; upper and lower case differ.
template <NamedEnum E>
constexpr std::optional<E> parse_enum(std::string_view text) {
  for (const auto& [each, name] : EnumNames<E>::values) {
    if (name == text) return each;
  }
  return std::nullopt;
}

// "red, blue"
template <NamedEnum E>
std::string list_names() {
  std::string text;
  for (const auto& entry : EnumNames<E>::values) text += (text.empty() ? "" : ", ") + std::string(entry.second);
  return text;
}

}  // namespace octet
