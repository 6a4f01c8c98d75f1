#include "core/io/checksum.h"

#define XXH_INLINE_ALL
#include <fmt/format.h>
#include <xxhash.h>

namespace octet {

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

std::string Checksum::hex() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(&state_->xxh3);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

std::string checksum_hex(std::string_view bytes) { return Checksum(bytes).hex(); }

uint64_t checksum64(const void* from, uint64_t bytes, uint64_t seed) { return XXH3_64bits_withSeed(from, bytes, seed); }

}  // namespace octet
