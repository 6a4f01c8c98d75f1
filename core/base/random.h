// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
// There is no generator state. A stream is a seed and a name; its n-th value is a pure function of (seed, name, n),
// so any rank, thread or resumed run can compute any value in any order.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace octet {

// Four 32-bit words for a 64-bit key and a 128-bit counter.
std::array<uint32_t, 4> philox4x32(uint64_t key, uint64_t counter_low, uint64_t counter_high);

class RandomStream {
 public:
  // name: what the numbers are for, e.g. "init/model.layers.0.mlp.gate.weight" or "sample".
  RandomStream(uint64_t seed, std::string_view name);

  // The n-th 64 random bits; `lane` gives one n several independent values.
  uint64_t bits(uint64_t n, uint64_t lane = 0) const;
  // Uniform on [0, 1) with 24 random bits.
  float uniform(uint64_t n, uint64_t lane = 0) const;
  // Normal with mean 0 and deviation 1, by Box-Muller in double precision.
  float normal(uint64_t n, uint64_t lane = 0) const;
  // Uniform on 0 .. limit - 1 without bias beyond 2^-64 * limit; limit >= 1.
  uint64_t below(uint64_t limit, uint64_t n, uint64_t lane = 0) const;

  uint64_t key() const { return key_; }

 private:
  uint64_t key_;
};

}  // namespace octet
