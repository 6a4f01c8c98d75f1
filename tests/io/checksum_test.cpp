#include "core/io/checksum.h"

#include <catch2/catch.hpp>

namespace octet::test {

TEST_CASE("checksums are the published XXH3 ones, however the bytes are cut", "[io][checksum]") {
  // XXH3-128 of no bytes, as xxhash's own `xxh128sum` prints it.
  CHECK(checksum_hex("") == "99aa06d3014798d86001c324468d497f");
  CHECK(checksum64("", 0, 0) == 0x2d06800538d394c2ull);
  std::string bytes;
  for (int i = 0; i < 3000; ++i) bytes += char(i * 7);
  for (const size_t cut : {size_t(0), size_t(1), size_t(240), size_t(1024), bytes.size()}) {
    Checksum checksum;
    checksum.add(bytes.data(), cut);
    checksum.add(bytes.data() + cut, bytes.size() - cut);
    CHECK(checksum.hex() == checksum_hex(bytes));
  }
  CHECK(Checksum("binding").hex() == checksum_hex("binding"));
  CHECK(checksum_hex("a") != checksum_hex("b"));
  CHECK(checksum64("a", 1, 0) != checksum64("a", 1, 1));
}

}  // namespace octet::test
