// UTF-8 as in RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace octet {

// Bytes of the well-formed character that starts at text[at], or 0 where none does.
inline size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return at + i < text.size() ? uint8_t(text[at + i]) : 0u; };
  const auto is_tail = [&](size_t i) { return (byte(i) & 0xc0u) == 0x80u; };
  const unsigned first = byte(0);
  if (first < 0x80) return at < text.size() ? 1 : 0;
  if (first < 0xc2) return 0;
  if (first < 0xe0) return is_tail(1) ? 2 : 0;
  if (first < 0xf0) {
    if (first == 0xe0 && byte(1) < 0xa0) return 0;   // overlong
    if (first == 0xed && byte(1) >= 0xa0) return 0;  // surrogate
    return is_tail(1) && is_tail(2) ? 3 : 0;
  }
  if (first > 0xf4) return 0;
  if (first == 0xf0 && byte(1) < 0x90) return 0;   // overlong
  if (first == 0xf4 && byte(1) >= 0x90) return 0;  // above U+10FFFF
  return is_tail(1) && is_tail(2) && is_tail(3) ? 4 : 0;
}

// The end of the longest well-formed run that starts at text[at].
inline size_t utf8_run_end(std::string_view text, size_t at) {
  while (at < text.size()) {
    uint64_t eight;
    if (at + 8 <= text.size()) {
      std::memcpy(&eight, text.data() + at, 8);
      if ((eight & 0x8080808080808080u) == 0) {
        at += 8;
        continue;
      }
    }
    const size_t length = utf8_length(text, at);
    if (length == 0) break;
    at += length;
  }
  return at;
}

// Appends the character. code_point must be a valid one.
inline void append_utf8(std::string& to, uint32_t code_point) {
  if (code_point < 0x80) {
    to += char(code_point);
  } else if (code_point < 0x800) {
    to += char(0xc0 | code_point >> 6);
    to += char(0x80 | (code_point & 63));
  } else if (code_point < 0x10000) {
    to += char(0xe0 | code_point >> 12);
    to += char(0x80 | (code_point >> 6 & 63));
    to += char(0x80 | (code_point & 63));
  } else {
    to += char(0xf0 | code_point >> 18);
    to += char(0x80 | (code_point >> 12 & 63));
    to += char(0x80 | (code_point >> 6 & 63));
    to += char(0x80 | (code_point & 63));
  }
}

}  // namespace octet
