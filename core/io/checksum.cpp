#include "core/io/checksum.h"

#define XXH_INLINE_ALL
#include <fmt/format.h>
#include <xxhash.h>

#include <charconv>

namespace octet {

std::string hex(const Checksum128& digest) { return fmt::format("{:016x}{:016x}", digest[0], digest[1]); }

std::optional<Checksum128> digest_from_hex(std::string_view text) {
  constexpr size_t kDigits = 16;  // of 64 bits
  if (text.size() != 2 * kDigits || text.find_first_not_of("0123456789abcdef") != std::string_view::npos) {
    return std::nullopt;
  }
  Checksum128 digest{};
  for (size_t i = 0; i < digest.size(); ++i) {
    std::from_chars(text.data() + i * kDigits, text.data() + (i + 1) * kDigits, digest[i], 16);
  }
  return digest;
}

struct Checksum::State {
  XXH3_state_t xxh3;
};

Checksum::Checksum() : state_(std::make_unique<State>()) { XXH3_128bits_reset(&state_->xxh3); }
Checksum::Checksum(std::string_view binding) : Checksum() { add(binding.data(), binding.size()); }
Checksum::~Checksum() = default;
Checksum::Checksum(Checksum&&) noexcept = default;
Checksum& Checksum::operator=(Checksum&&) noexcept = default;

void Checksum::add(const void* from, uint64_t bytes) {
  if (bytes > 0) XXH3_128bits_update(&state_->xxh3, from, bytes);
}

Checksum128 Checksum::digest() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(&state_->xxh3);
  return {hash.high64, hash.low64};
}

std::string Checksum::hex() const { return octet::hex(digest()); }

std::string checksum_hex(std::string_view bytes) { return Checksum(bytes).hex(); }

uint64_t checksum64(const void* from, uint64_t bytes, uint64_t seed) { return XXH3_64bits_withSeed(from, bytes, seed); }

}  // namespace octet
