#include "core/base/random.h"

#include <cmath>
#include <numbers>

namespace octet {

std::array<uint32_t, 4> philox4x32(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  constexpr uint32_t kMul0 = 0xD2511F53u, kMul1 = 0xCD9E8D57u;    // the paper's multipliers
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;  // golden ratio, sqrt(3) - 1
  constexpr int kRounds = 10;
  uint32_t c0 = uint32_t(counter_low), c1 = uint32_t(counter_low >> 32);
  uint32_t c2 = uint32_t(counter_high), c3 = uint32_t(counter_high >> 32);
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p0 = uint64_t(kMul0) * c0, p1 = uint64_t(kMul1) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c1 = uint32_t(p1);
    c3 = uint32_t(p0);
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return {c0, c1, c2, c3};
}

RandomStream::RandomStream(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a of the name, then mixed with the seed by one Philox block
  for (const char c : name) hash = (hash ^ uint8_t(c)) * 0x100000001b3u;
  const auto words = philox4x32(seed, hash, 0x6f63746574u);
  key_ = uint64_t(words[0]) | uint64_t(words[1]) << 32;
}

uint64_t RandomStream::bits(uint64_t n, uint64_t lane) const {
  const auto words = philox4x32(key_, n, lane);
  return uint64_t(words[0]) | uint64_t(words[1]) << 32;
}

float RandomStream::uniform(uint64_t n, uint64_t lane) const { return float(bits(n, lane) >> 40) * 0x1p-24f; }

float RandomStream::normal(uint64_t n, uint64_t lane) const {
  const auto words = philox4x32(key_, n, lane);
  const double u = (double(words[0]) + 1.0) * 0x1p-32, v = double(words[1]) * 0x1p-32;  // u in (0, 1]
  return float(std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v));
}

uint64_t RandomStream::below(uint64_t limit, uint64_t n, uint64_t lane) const {
  return uint64_t((static_cast<unsigned __int128>(bits(n, lane)) * limit) >> 64);
}

}  // namespace octet
