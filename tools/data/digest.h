// XXH3-128 of bytes. It detects accidents, not attackers.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace octet {

using Digest = std::array<uint8_t, 16>;  // the canonical (big-endian) form

Digest digest_of(std::string_view bytes);
Digest digest_of(const void* from, uint64_t bytes);
// 32 lower-case hexadecimal digits.
std::string hex_digest(const Digest& digest);
// The reverse; false where the text is anything else.
bool parse_digest(std::string_view text, Digest& digest);

}  // namespace octet
