#include "kernels/cuda/gemm_tile.h"

#include <catch2/catch.hpp>

#include <set>

#include "core/base/random.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tile_schedule.h"

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

TEST_CASE("persistent blocks take each tile of each group once", "[kernels][gemm_tile]") {
  const int tile_rows = GENERATE(64, 128), columns = GENERATE(1, 5, 16, 35);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const RandomStream random(seed, "groups");
    std::vector<int64_t> offsets = {0};
    const int groups = int(random.below(9, 0)), num_blocks = 1 + int(random.below(7, 1));
    for (int g = 0; g < groups; ++g) {
      const bool is_empty = random.below(3, uint64_t(g), 2) == 0;
      offsets.push_back(offsets.back() + (is_empty ? 0 : int64_t(random.below(900, uint64_t(g), 3))));
    }
    const int64_t rows = offsets.back();
    std::set<std::pair<int, int>> places;
    int64_t covered = 0;
    for (int block = 0; block < num_blocks; ++block) {
      TileWalk walk(RowSpans{offsets.data(), int(rows)}, groups, tile_rows, columns);
      GroupTile tile;
      for (int index = block; walk.find(index, tile); index += num_blocks) {
        CHECK(places.insert({tile.first, tile.column}).second);
        CHECK((tile.count >= 1 && tile.count <= tile_rows && tile.column >= 0 && tile.column < columns));
        CHECK(offsets[size_t(tile.group)] <= tile.first);
        CHECK((tile.first - offsets[size_t(tile.group)]) % tile_rows == 0);
        CHECK(tile.first + tile.count <= offsets[size_t(tile.group) + 1]);
        covered += tile.count;
      }
    }
    CHECK(covered == rows * columns);
    CHECK(int64_t(places.size()) <= most_row_tiles(groups, rows, tile_rows) * columns);
  }
}

TEST_CASE("persistent blocks take each tile of each weight gradient once", "[kernels][gemm_tile]") {
  const bool skips_empty = GENERATE(false, true);
  const int rows = GENERATE(0, 1, 128, 300), columns = GENERATE(1, 17);
  const std::vector<int64_t> offsets = {0, 5, 5, 305, 305, 306}, block_offsets = {0, 1, 1, 4, 4, 5};
  const int groups = 5, num_blocks = 3;
  std::set<std::tuple<int, int, int>> places;
  for (int block = 0; block < num_blocks; ++block) {
    TileWalk walk(SumSpans{offsets.data(), block_offsets.data(), rows, 5 * 128, skips_empty}, groups, 128, columns);
    GroupTile tile;
    for (int index = block; walk.find(index, tile); index += num_blocks) {
      CHECK(places.insert({tile.group, tile.line, tile.column}).second);
      CHECK((tile.first == tile.group * rows + tile.line && tile.line % 128 == 0));
      CHECK((tile.count == std::min(128, rows - tile.line) && tile.count > 0 && tile.column < columns));
      const size_t g = size_t(tile.group);
      CHECK((tile.depth == offsets[g + 1] - offsets[g] && tile.first_k == 128 * block_offsets[g]));
    }
  }
  CHECK(int(places.size()) == (skips_empty ? 3 : 5) * ((rows + 127) / 128) * columns);
}

TEST_CASE("pairs of blocks take each tile once, in step", "[kernels][gemm_tile]") {
  const int columns = GENERATE(1, 5, 16, 35), tile_rows = 128, num_pairs = 3;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const RandomStream random(seed, "groups");
    std::vector<int64_t> offsets = {0}, block_offsets = {0};
    const int groups = int(random.below(9, 0));
    for (int g = 0; g < groups; ++g) {
      const bool is_empty = random.below(3, uint64_t(g), 1) == 0;
      offsets.push_back(offsets.back() + (is_empty ? 0 : int64_t(random.below(900, uint64_t(g), 2))));
      block_offsets.push_back(block_offsets.back() + (offsets.back() - offsets[size_t(g)] + 127) / 128);
    }
    const auto check = [&](const auto& spans, int64_t rows) {
      std::set<std::pair<int, int>> places;
      int64_t covered = 0;
      for (int pair = 0; pair < num_pairs; ++pair) {
        TileWalk walk(spans, groups, 2 * tile_rows, columns);
        GroupTile tile;
        for (int index = pair; walk.find(index, tile); index += num_pairs) {
          GroupTile halves[2] = {tile, tile};
          for (int block = 0; block < 2; ++block) keep_rows_of_block(halves[block], block, tile_rows);
          CHECK((halves[0].group == halves[1].group && halves[0].column == halves[1].column));
          CHECK((halves[0].first_k == halves[1].first_k && halves[0].depth == halves[1].depth));
          CHECK((halves[0].count > 0 && halves[1].first == halves[0].first + tile_rows));
          CHECK(halves[1].line - halves[0].line == tile_rows);
          CHECK((halves[1].count == 0 || halves[0].count == tile_rows));
          for (const GroupTile& half : halves) {
            CHECK((half.count <= tile_rows && (half.count == 0 || places.insert({half.first, half.column}).second)));
            covered += half.count;
          }
        }
      }
      CHECK(covered == rows * columns);
    };
    check(RowSpans{offsets.data(), int(offsets.back())}, offsets.back());
    const int rows = int(random.below(400, 1)), k = int(block_offsets.back()) * 128;
    check(SumSpans{offsets.data(), block_offsets.data(), rows, k, /*skips_empty=*/false}, rows * int64_t(groups));
  }
}

TEST_CASE("pairs of blocks pay where few tiles have no partner and every pair has work", "[kernels][gemm_tile]") {
  const int blocks = 132;
  CHECK(pairs_pay(4 * 8192, 4, /*are_alike=*/false, 16, blocks));
  CHECK(pairs_pay(8 * 1024, 8, false, 16, blocks));
  CHECK(!pairs_pay(8 * 896, 8, false, 16, blocks));  // 7 tiles of a group, on average
  CHECK(pairs_pay(8 * 512, 8, true, 16, blocks));    // 4 of each
  CHECK(!pairs_pay(8 * 640, 8, true, 16, blocks));   // 5 of each
  CHECK(pairs_pay(8 * 1152, 8, true, 16, blocks));   // 9 of each, one of 10 without a partner
  CHECK(!pairs_pay(1 * 1024, 1, true, 16, blocks));  // 4 pairs of rows and 16 of columns: 64 of 66
  CHECK(pairs_pay(1 * 1024, 1, true, 17, blocks));
}

TEST_CASE("groups that are not within what is summed have nothing to sum", "[kernels][gemm_tile]") {
  const std::vector<int64_t> offsets = {0, 100, 50, 500, 600, 1000}, block_offsets = {0, 1, 1, 2, -5, 2};
  TileWalk walk(SumSpans{offsets.data(), block_offsets.data(), 1, 3 * 128, /*skips_empty=*/false}, 5, 128, 1);
  GroupTile tile;
  std::vector<int> depths;
  for (int index = 0; walk.find(index, tile); ++index) depths.push_back(tile.depth);
  CHECK(depths == std::vector<int>{100, 0, 0, 100, 0});
}

TEST_CASE("what is summed begins at any row where groups have no blocks", "[kernels][gemm_tile]") {
  const std::vector<int64_t> offsets = {0, 5, 5, 305, 400, 100};
  const auto sums_of = [](const SumSpans& spans, int groups) {
    TileWalk walk(spans, groups, 128, 1);
    GroupTile tile;
    std::vector<std::tuple<int, int, int>> sums;  // group, first, count
    for (int index = 0; walk.find(index, tile); ++index) sums.emplace_back(tile.group, tile.first_k, tile.depth);
    return sums;
  };
  using Sums = std::vector<std::tuple<int, int, int>>;
  CHECK(sums_of({offsets.data(), nullptr, 1, 305, /*skips_empty=*/true}, 5) == Sums{{0, 0, 5}, {2, 5, 300}});
  CHECK(sums_of({offsets.data(), nullptr, 1, 305, /*skips_empty=*/false}, 5) ==
        Sums{{0, 0, 5}, {1, 5, 0}, {2, 5, 300}, {3, 0, 0}, {4, 0, 0}});
  CHECK(sums_of({nullptr, nullptr, 1, 305, /*skips_empty=*/true}, 1) == Sums{{0, 0, 305}});
}

TEST_CASE("groups that are not within the rows have no tiles", "[kernels][gemm_tile]") {
  const std::vector<int64_t> offsets = {0, 100, 50, 200, 1000, -5};
  TileWalk walk(RowSpans{offsets.data(), 300}, 5, 128, 1);
  GroupTile tile;
  std::vector<int> firsts;
  for (int index = 0; walk.find(index, tile); ++index) firsts.push_back(tile.first);
  CHECK(firsts == std::vector<int>{0, 50, 178});
  TileWalk dense(RowSpans{nullptr, 130}, 1, 128, 2);
  for (int index = 0; index < 4; ++index) CHECK(dense.find(index, tile));
  CHECK((tile.first == 128 && tile.count == 2 && tile.column == 1));
  CHECK(!dense.find(4, tile));
}

TEST_CASE("tiles that run together share rows and columns", "[kernels][gemm_tile]") {
  const int row_tiles = 64, column_tiles = 56, together = 132;
  for (int first = 0; first + together <= row_tiles * column_tiles; first += together) {
    std::set<int> rows, columns;
    for (int i = first; i < first + together; ++i) {
      const TilePlace place = place_in_bands(i, row_tiles, column_tiles);
      rows.insert(place.row), columns.insert(place.column);
    }
    CHECK(rows.size() + columns.size() <= 48);  // of 24 at best: two bands at worst
  }
}

TEST_CASE("a ring comes back to a stage in the other phase", "[kernels][gemm_tile]") {
  RingPlace<5> at;
  for (int i = 0; i < 23; ++i) {
    CHECK((at.stage == i % 5 && at.parity == uint32_t(i / 5 % 2)));
    at.advance();
  }
}

TEST_CASE("a GPU copies tiles of matrices on boundaries of 16 bytes", "[kernels][gemm_tile]") {
  alignas(16) static const char memory[64] = {};
  const MatrixTiles good{.data = memory,
                         .element_bytes = 2,
                         .rows = 5,
                         .columns = 9,
                         .row_bytes = 32,
                         .tile_rows = 128,
                         .tile_columns = 64};
  CHECK(can_be_tiled(good));
  CHECK(tile_bytes(good) == 128 * 128);
  const auto with = [&](auto&& change) {
    MatrixTiles tiles = good;
    change(tiles);
    return can_be_tiled(tiles);
  };
  CHECK(!with([](MatrixTiles& t) { t.data = memory + 8; }));
  CHECK(!with([](MatrixTiles& t) { t.row_bytes = 24; }));
  CHECK(!with([](MatrixTiles& t) { t.row_bytes = 16; }));
  CHECK(!with([](MatrixTiles& t) { t.row_bytes = int64_t(1) << 40; }));
  CHECK(!with([](MatrixTiles& t) { t.rows = 0; }));
  CHECK(!with([](MatrixTiles& t) { t.rows = int64_t(1) << 31; }));
  CHECK(!with([](MatrixTiles& t) { t.columns = 0; }));
  CHECK(!with([](MatrixTiles& t) { t.tile_columns = 32; }));
  CHECK(!with([](MatrixTiles& t) { t.tile_rows = 257; }));
}

}  // namespace octet::test
