#include "tools/train/config_keys.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <type_traits>

#include "core/base/nearest.h"

namespace octet {
namespace {

template <class T>
concept Section = requires(T& t) {
  t.fields([](auto, auto&, auto) {});
};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Shortened for a message.
std::string shown(const ScalarText& scalar) {
  std::string text = scalar.text.substr(0, 60);
  // Not in the middle of a UTF-8 sequence.
  while (scalar.text.size() > 60 && !text.empty() && (uint8_t(scalar.text[text.size()]) & 0xc0) == 0x80) {
    text.pop_back();
  }
  if (scalar.text.size() > 60) text += "...";
  return scalar.is_quoted ? fmt::format("\"{}\"", text) : text;
}

// A decimal number cut into its parts: (-) digits (. digits) (e exponent).
struct Decimal {
  bool is_negative = false;
  std::string_view whole, fraction;
  int64_t exponent = 0;
  bool has_point = false, has_exponent = false;
};

std::optional<Decimal> parse_decimal(std::string_view text) {
  Decimal number;
  size_t at = 0;
  if (at < text.size() && text[at] == '-') number.is_negative = true, ++at;
  const size_t whole = at;
  while (at < text.size() && is_digit(text[at])) ++at;
  number.whole = text.substr(whole, at - whole);
  if (at < text.size() && text[at] == '.') {
    number.has_point = true;
    const size_t fraction = ++at;
    while (at < text.size() && is_digit(text[at])) ++at;
    number.fraction = text.substr(fraction, at - fraction);
  }
  if (number.whole.empty() && number.fraction.empty()) return std::nullopt;
  if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
    number.has_exponent = true;
    ++at;
    bool is_negative = false;
    if (at < text.size() && (text[at] == '-' || text[at] == '+')) is_negative = text[at++] == '-';
    const size_t digits = at;
    while (at < text.size() && is_digit(text[at])) {
      // Far outside every range already; more digits change nothing.
      if (number.exponent < 1'000'000) number.exponent = number.exponent * 10 + (text[at] - '0');
      ++at;
    }
    if (at == digits) return std::nullopt;
    if (is_negative) number.exponent = -number.exponent;
  }
  if (at != text.size()) return std::nullopt;
  return number;
}

// The number that a text in a common but refused spelling stands for: "1_000", "1,000", "010", "+5", "0x10". Empty
// where there is none.
std::string plain_number(std::string_view text) {
  std::string digits;
  for (const char c : text) {
    if (c != '_' && c != ',' && c != '\'') digits += c;
  }
  std::string_view rest = digits;
  std::string sign;
  if (!rest.empty() && (rest.front() == '+' || rest.front() == '-')) {
    if (rest.front() == '-') sign = "-";
    rest.remove_prefix(1);
  }
  if (rest.size() > 2 && rest[0] == '0' && (rest[1] == 'x' || rest[1] == 'X')) {
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(rest.data() + 2, rest.data() + rest.size(), value, 16);
    return error == std::errc() && end == rest.data() + rest.size() ? sign + fmt::format("{}", value) : std::string();
  }
  while (rest.size() > 1 && rest[0] == '0' && is_digit(rest[1])) rest.remove_prefix(1);
  const std::string candidate = sign + std::string(rest);
  return parse_decimal(candidate) ? candidate : std::string();
}

// What both kinds of number refuse: everything but one plain decimal spelling.
std::optional<Mistake> parse_strictly(const ScalarText& scalar, const char* wanted, Decimal& number) {
  const std::string& text = scalar.text;
  const std::optional<Decimal> parsed = parse_decimal(text);
  if (scalar.is_quoted) {
    return Mistake{fmt::format("is {}, a text in quotes; wanted {}", shown(scalar), wanted), plain_number(text)};
  }
  if (!parsed) {
    std::string lower;
    for (const char c : text.substr(0, 9)) lower += char(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    for (const char* name : {".nan", "nan", ".inf", "inf", "-.inf", "-inf", "infinity"}) {
      if (lower == name) {
        return Mistake{fmt::format("is {}, which is not finite; wanted {}", shown(scalar), wanted), {}};
      }
    }
    return Mistake{fmt::format("is {}; wanted {}", shown(scalar), wanted), plain_number(text)};
  }
  if (parsed->whole.size() > 1 && parsed->whole.front() == '0') {
    return Mistake{
        fmt::format("is {}, with a leading zero that some readers take for base 8; wanted {}", shown(scalar), wanted),
        plain_number(text)};
  }
  number = *parsed;
  return std::nullopt;
}

template <class Real>
std::optional<Mistake> parse_real(const ScalarText& scalar, Real& value) {
  Decimal number;
  if (auto mistake = parse_strictly(scalar, "a number", number)) return mistake;
  Real parsed = 0;
  const std::string& text = scalar.text;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(parsed)) {
    return Mistake{fmt::format("is {}, beyond the range of float{}; wanted 0 or a number from {} to {}", shown(scalar),
                               8 * sizeof(Real), std::numeric_limits<Real>::min(), std::numeric_limits<Real>::max()),
                   {}};
  }
  value = parsed;
  return std::nullopt;
}

template <class T>
struct Leaf;

template <>
struct Leaf<int64_t> {
  static constexpr const char* type = "an integer";
  static std::optional<Mistake> parse(const ScalarText& scalar, int64_t& value) { return parse_integer(scalar, value); }
  static std::string print(int64_t value) { return fmt::format("{}", value); }
};
template <class Real>
requires std::is_floating_point_v<Real>
struct Leaf<Real> {
  static constexpr const char* type = "a number";
  static std::optional<Mistake> parse(const ScalarText& scalar, Real& value) { return parse_real(scalar, value); }
  // fmt prints the shortest text that reads back to the same bits.
  static std::string print(Real value) { return fmt::format("{}", value); }
};
template <>
struct Leaf<bool> {
  static constexpr const char* type = "true or false";
  static std::optional<Mistake> parse(const ScalarText& scalar, bool& value) { return parse_boolean(scalar, value); }
  static std::string print(bool value) { return value ? "true" : "false"; }
};
template <>
struct Leaf<std::string> {
  static constexpr const char* type = "a text";
  static std::optional<Mistake> parse(const ScalarText& scalar, std::string& value) {
    value = scalar.text;
    return std::nullopt;
  }
  static std::string print(const std::string& value) { return quoted_yaml(value); }
};
template <NamedEnum E>
struct Leaf<E> {
  static inline const std::string type = "one of " + list_names<E>();
  static std::optional<Mistake> parse(const ScalarText& scalar, E& value) {
    const auto found = parse_enum<E>(scalar.text);
    if (!found) {
      std::vector<std::string> names;
      for (const auto& entry : EnumNames<E>::values) names.emplace_back(entry.second);
      return Mistake{fmt::format("is {}; wanted {}", shown(scalar), type), nearest_name(scalar.text, names)};
    }
    value = *found;
    return std::nullopt;
  }
  static std::string print(E value) { return std::string(name_of(value)); }
};

template <class T>
struct ListElement {};
template <class T>
struct ListElement<std::vector<T>> {
  using Type = T;
};
template <class T>
concept List = requires {
  typename ListElement<T>::Type;
};

// Names that other trainers and model files use, too far from ours to be found by their spelling.
constexpr std::pair<std::string_view, std::string_view> kNamesElsewhere[] = {
    {"learning_rate", "lr"},
    {"n_layer", "layers"},
    {"n_head", "heads"},
    {"n_embd", "hidden"},
    {"d_model", "hidden"},
    {"num_key_value_heads", "kv_heads"},
    {"intermediate_size", "ffn_hidden"},
    {"moe_intermediate_size", "expert_hidden"},
    {"n_routed_experts", "num_experts"},
    {"num_experts_per_tok", "top_k"},
    {"initializer_range", "init_std"},
    {"tie_word_embeddings", "tied_head"},
    {"max_grad_norm", "grad_clip"},
    {"clip_grad", "grad_clip"},
    {"wd", "weight_decay"},
    {"max_iters", "steps"},
};

class Collector {
 public:
  explicit Collector(std::vector<ConfigKey>& keys) : keys_(keys) {}

  template <class T>
  void operator()(const char* name, T& member, const char* documentation) {
    ConfigKey key;
    key.parent = parent_;
    key.name = name;
    key.path = parent_.empty() ? key.name : parent_ + "." + key.name;
    key.documentation = documentation;
    if constexpr (Section<T>) {
      key.type = "a section";
      key.is_section = true;
      const std::string outer = std::exchange(parent_, key.path);
      keys_.push_back(std::move(key));
      member.fields([this](const char* n, auto& m, const char* d) { (*this)(n, m, d); });
      parent_ = outer;
    } else if constexpr (List<T>) {
      using Element = typename ListElement<T>::Type;
      key.type = fmt::format("a list, each {}", Leaf<Element>::type);
      key.is_list = true;
      key.assign = [&member](const std::vector<ScalarText>& scalars) -> std::optional<Mistake> {
        T parsed;
        for (size_t i = 0; i < scalars.size(); ++i) {
          Element element{};
          if (auto mistake = Leaf<Element>::parse(scalars[i], element)) {
            mistake->index = i;
            return mistake;
          }
          parsed.push_back(element);
        }
        member = std::move(parsed);
        return std::nullopt;
      };
      key.print = [&member] {
        std::string text;
        for (const Element& element : member) text += (text.empty() ? "" : ", ") + Leaf<Element>::print(element);
        return "[" + text + "]";
      };
      keys_.push_back(std::move(key));
    } else {
      key.type = Leaf<T>::type;
      key.assign = [&member](const std::vector<ScalarText>& scalars) {
        return Leaf<T>::parse(scalars.front(), member);
      };
      key.print = [&member] { return Leaf<T>::print(member); };
      keys_.push_back(std::move(key));
    }
  }

 private:
  std::vector<ConfigKey>& keys_;
  std::string parent_;
};

}  // namespace

std::optional<Mistake> parse_integer(const ScalarText& scalar, int64_t& value) {
  Decimal number;
  if (auto mistake = parse_strictly(scalar, "an integer", number)) return mistake;
  // Digits only, or a spelling such as 1e6 and 2.5e3 that denotes an integer exactly: the point is moved in the text,
  // so nothing is rounded.
  std::string digits = std::string(number.whole) + std::string(number.fraction);
  int64_t shift = number.exponent - int64_t(number.fraction.size());
  while (shift < 0 && !digits.empty() && digits.back() == '0') digits.pop_back(), ++shift;
  const size_t significant = digits.find_first_not_of('0');
  digits = significant == std::string::npos ? "0" : digits.substr(significant);
  if (digits == "0") shift = 0;
  if (shift < 0) {
    return Mistake{fmt::format("is {}, which is not whole; wanted an integer", shown(scalar)), {}};
  }
  int64_t parsed = 0;
  bool fits = int64_t(digits.size()) + shift <= 19;
  if (fits) {
    digits.append(size_t(shift), '0');
    if (number.is_negative) digits.insert(digits.begin(), '-');
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), parsed);
    fits = error == std::errc() && end == digits.data() + digits.size();
  }
  if (!fits) {
    return Mistake{fmt::format("is {}, beyond the range of 64 bits; wanted an integer from {} to {}", shown(scalar),
                               std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()),
                   {}};
  }
  value = parsed;
  return std::nullopt;
}

std::optional<Mistake> parse_number(const ScalarText& scalar, double& value) { return parse_real(scalar, value); }
std::optional<Mistake> parse_number(const ScalarText& scalar, float& value) { return parse_real(scalar, value); }

std::optional<Mistake> parse_boolean(const ScalarText& scalar, bool& value) {
  if (!scalar.is_quoted && (scalar.text == "true" || scalar.text == "false")) {
    value = scalar.text == "true";
    return std::nullopt;
  }
  std::string lower;
  for (const char c : scalar.text.substr(0, 8)) lower += char(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  std::string corrected;
  for (const char* yes : {"true", "yes", "on", "y", "t", "1"}) {
    if (lower == yes) corrected = "true";
  }
  for (const char* no : {"false", "no", "off", "n", "f", "0"}) {
    if (lower == no) corrected = "false";
  }
  return Mistake{
      fmt::format("is {}{}; wanted true or false", shown(scalar), scalar.is_quoted ? ", a text in quotes" : ""),
      corrected};
}

std::string quoted_yaml(std::string_view text) {
  bool is_plain = !text.empty();
  for (const char c : text) {
    const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    is_plain = is_plain && (is_letter || is_digit(c) || c == '_' || c == '/' || c == '.' || c == '-');
  }
  // "-" and "..." begin other things, and null is no text.
  const bool begins_like_a_word = !text.empty() && text.front() != '-' && text.front() != '.';
  const bool begins_like_a_path = text.substr(0, 2) == "./" || text.substr(0, 3) == "../";
  if (is_plain && (begins_like_a_word || begins_like_a_path) && text != "null" && text != "Null" && text != "NULL") {
    return std::string(text);
  }
  std::string out = "\"";
  for (size_t i = 0; i < text.size(); ++i) {
    const uint8_t c = uint8_t(text[i]);
    if (c == '"' || c == '\\') {
      out += '\\', out += char(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c < 0x20 || c == 0x7f) {
      out += fmt::format("\\x{:02x}", c);
    } else {
      out += char(c);
    }
  }
  return out + "\"";
}

std::vector<ConfigKey> config_keys(Config& config) {
  std::vector<ConfigKey> keys;
  Collector collect(keys);
  config.fields(
      [&collect](const char* name, auto& member, const char* documentation) { collect(name, member, documentation); });
  return keys;
}

const ConfigKey* find_key(const std::vector<ConfigKey>& keys, std::string_view path) {
  for (const ConfigKey& key : keys) {
    if (key.path == path) return &key;
  }
  return nullptr;
}

const ConfigKey* nearest_key(const std::vector<ConfigKey>& keys, std::string_view parent, std::string_view name) {
  if (name.size() > 256) return nullptr;
  for (const auto& [elsewhere, ours] : kNamesElsewhere) {
    if (name == elsewhere) name = ours;
  }
  const std::string full = parent.empty() ? std::string(name) : std::string(parent) + "." + std::string(name);
  // A key of another section costs 1.5 more: less than a second edit, more than the first.
  constexpr double kElsewhere = 1.5;
  const ConfigKey* best = nullptr;
  double best_distance = plausible_distance(name);
  for (const ConfigKey& key : keys) {
    double distance = name_distance(name, key.name);
    if (key.parent != parent) {
      // "optim.learn" or "moe.top_k" may be a path that lacks its first part.
      const bool is_path = name.find('.') != std::string_view::npos;
      distance =
          is_path ? std::min(name_distance(name, key.path), name_distance(full, key.path)) : distance + kElsewhere;
      if (is_path && key.path.size() > name.size() && key.path.ends_with("." + std::string(name))) distance = 0.5;
    }
    if (distance < best_distance || (best == nullptr && distance == best_distance)) {
      best = &key, best_distance = distance;
    }
  }
  return best;
}

}  // namespace octet
