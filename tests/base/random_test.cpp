#include "core/base/random.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <set>

namespace octet {

TEST_CASE("philox4x32-10 gives the published known answers", "[base][random]") {
  // Random123, kat_vectors: all zeros, all ones, digits of pi.
  using Words = std::array<uint32_t, 4>;
  CHECK(philox4x32(0, 0, 0) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32(~0ull, ~0ull, ~0ull) == Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("a stream depends on its seed and its name, and on nothing else", "[base][random]") {
  const RandomStream a(1, "init/a");
  CHECK(a.bits(7) == RandomStream(1, "init/a").bits(7));
  CHECK(a.bits(7) != RandomStream(1, "init/b").bits(7));
  CHECK(a.bits(7) != RandomStream(2, "init/a").bits(7));
  CHECK(a.bits(7, 0) != a.bits(7, 1));
}

TEST_CASE("uniform and normal numbers have their moments", "[base][random]") {
  const RandomStream stream(3, "moments");
  constexpr int kCount = 100000;
  double sum_u = 0, sum_n = 0, sum_n2 = 0;
  for (int i = 0; i < kCount; ++i) {
    const float u = stream.uniform(uint64_t(i)), n = stream.normal(uint64_t(i), 1);
    REQUIRE((u >= 0.0f && u < 1.0f));
    sum_u += u, sum_n += n, sum_n2 += double(n) * n;
  }
  // Five deviations of each mean.
  CHECK(std::abs(sum_u / kCount - 0.5) < 5 * std::sqrt(1.0 / 12 / kCount));
  CHECK(std::abs(sum_n / kCount) < 5 / std::sqrt(kCount));
  CHECK(std::abs(sum_n2 / kCount - 1.0) < 5 * std::sqrt(2.0 / kCount));
}

TEST_CASE("below covers its range", "[base][random]") {
  const RandomStream stream(4, "below");
  std::set<uint64_t> seen;
  for (uint64_t i = 0; i < 200; ++i) seen.insert(stream.below(7, i));
  CHECK(seen == std::set<uint64_t>{0, 1, 2, 3, 4, 5, 6});
  CHECK(stream.below(1, 5) == 0);
}

}  // namespace octet
