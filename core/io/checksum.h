// XXH3 (xxhash 0.8, the published XXH3-128 and XXH3-64): finds accidents, not attackers.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace octet {

using Checksum128 = std::array<uint64_t, 2>;  // the upper 64 bits first
// 32 lower-case hexadecimal digits; and what they say, where a text is that.
std::string hex(const Checksum128& digest);
std::optional<Checksum128> digest_from_hex(std::string_view text);

// XXH3-128 of bytes that come in pieces.
class Checksum {
 public:
  Checksum();
  // Starts with `binding`: the same bytes in another place then have another checksum.
  explicit Checksum(std::string_view binding);
  ~Checksum();
  Checksum(Checksum&&) noexcept;
  Checksum& operator=(Checksum&&) noexcept;
  void add(const void* from, uint64_t bytes);
  // Of what was added so far.
  Checksum128 digest() const;
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string checksum_hex(std::string_view bytes);
// XXH3-64 of one block, for checking a part of a file without the rest.
uint64_t checksum64(const void* from, uint64_t bytes, uint64_t seed);

}  // namespace octet
