#include "kernels/cuda/gemm_tile.h"

#include <catch2/catch.hpp>

#include <set>

#include "core/base/random.h"

namespace octet::test {

using namespace kernels::cuda;

TEST_CASE("row tiles cover each row of each group once, and fit the bound", "[kernels][gemm_tile]") {
  const int64_t tile_rows = GENERATE(1, 64, 128);
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const RandomStream random(seed, "groups");
    std::vector<int64_t> offsets = {0};
    const int groups = 1 + int(random.below(9, 0));
    for (int g = 0; g < groups; ++g) {
      const bool is_empty = random.below(3, uint64_t(g), 1) == 0;
      offsets.push_back(offsets.back() + (is_empty ? 0 : int64_t(random.below(400, uint64_t(g), 2))));
    }
    const int64_t rows = offsets.back(), most = most_row_tiles(groups, rows, tile_rows);
    int64_t next = 0, index = 0;
    for (; index < most; ++index) {
      const RowTile tile = find_row_tile(offsets.data(), groups, rows, tile_rows, index);
      if (tile.group < 0) break;
      CHECK(tile.first == next);
      CHECK((tile.count >= 1 && tile.count <= tile_rows));
      CHECK(offsets[size_t(tile.group)] <= tile.first);
      CHECK(tile.first + tile.count <= offsets[size_t(tile.group) + 1]);
      next += tile.count;
    }
    CHECK(next == rows);
    CHECK(find_row_tile(offsets.data(), groups, rows, tile_rows, most).group == -1);
    CHECK(find_row_tile(nullptr, 1, rows, tile_rows, 0).count == std::min(rows, tile_rows));
  }
}

TEST_CASE("a swizzled tile has a place of its own for each byte, where wgmma looks for it", "[kernels][gemm_tile]") {
  std::set<uint32_t> places;
  for (uint32_t row = 0; row < 128; ++row) {
    for (uint32_t byte = 0; byte < 128; ++byte) {
      const uint32_t offset = swizzled_offset(row, byte);
      places.insert(offset);
      CHECK(offset / 128 == row);
      CHECK(swizzled_address(3 * 1024 + row * 128 + byte) == 3 * 1024 + offset);
    }
  }
  CHECK(places.size() == 128 * 128);
  // Eight rows read at one piece are in eight different groups of four banks.
  for (uint32_t piece = 0; piece < 8; ++piece) {
    std::set<uint32_t> banks;
    for (uint32_t row = 0; row < 8; ++row) banks.insert(swizzled_offset(row, piece * 16) % 128 / 16);
    CHECK(banks.size() == 8);
  }
  CHECK(wgmma_descriptor(0x4400) == (uint64_t(1) << 62 | uint64_t(64) << 32 | uint64_t(1) << 16 | 0x440));
}

TEST_CASE("the threads of a warpgroup hold each element of a product once", "[kernels][gemm_tile]") {
  std::set<std::pair<int, int>> places;
  for (int thread = 0; thread < 128; ++thread) {
    for (int i = 0; i < 64; ++i) {
      const Place at = wgmma_place(thread, i);
      CHECK((at.row >= thread / 32 * 16 && at.row < thread / 32 * 16 + 16));
      places.insert({at.row, at.column});
    }
  }
  CHECK(places.size() == 64 * 128);
  CHECK(places.rbegin()->second == 127);
}

}  // namespace octet::test
