// Which tile of a grouped product a persistent block computes next: plain functions, for kernels and for their tests.
// Tiles are numbered group by group; block b of n takes b, b + n, b + 2n, ... What runs at the same time should read
// the same operands from the L2 cache, so the tiles of a group run in bands of some columns, each band from the first
// row to the last: 132 blocks then hold 16 columns and 8 or 9 rows of tiles.
#pragma once

#include "kernels/cuda/gemm_tile.h"

namespace octet::kernels::cuda {

inline constexpr int kBandTiles = 16;

// The place of tile `index` among row_tiles by column_tiles of one group.
struct TilePlace {
  int row, column;
};
OCTET_HOST_DEVICE constexpr TilePlace place_in_bands(int index, int row_tiles, int column_tiles) {
  const int band = index / (row_tiles * kBandTiles), first = band * kBandTiles;
  const int width = column_tiles - first < kBandTiles ? column_tiles - first : kBandTiles;
  const int in_band = index - row_tiles * first;
  return {in_band / width, first + in_band % width};
}

struct GroupTile {
  int group;
  int first;   // row of the result
  int count;   // of rows, at most a tile's
  int column;  // in tiles
  // Where groups are ranges of what is summed; elsewhere the row of A is that of the result, and k is all.
  int line, first_k, depth;
};

// Blocks that work together take a tile of so many times tile_rows, of which each has its part, which may be empty.
OCTET_HOST_DEVICE constexpr void keep_rows_of_block(GroupTile& tile, int block, int tile_rows) {
  tile.first += block * tile_rows;
  tile.line += block * tile_rows;
  const int left = tile.count - block * tile_rows;
  tile.count = left < 0 ? 0 : left < tile_rows ? left : tile_rows;
}

// Whether pairs of blocks that share what they read are worth what they leave undone: a group with an odd number of row
// tiles takes as long as with one more. rows: of all groups, which may be fewer on a GPU. Where groups are not alike
// that is half a tile on average, which a sixteenth of 8 is few enough; and there must be work for all pairs.
constexpr bool pairs_pay(int64_t rows, int groups, bool are_alike, int64_t column_tiles, int most_blocks) {
  const int64_t row_tiles = (rows / groups + 127) / 128;  // of a group
  const bool is_even_enough = row_tiles >= 8 || (are_alike && row_tiles % 2 == 0);
  return is_even_enough && (row_tiles + 1) / 2 * groups * column_tiles >= most_blocks / 2;
}

// Groups are ranges of the rows of A, as many rows of the result. offsets: [groups + 1]; null: one group of all rows.
struct RowSpans {
  static constexpr bool kIsOfSums = false;
  const int64_t* offsets;
  int rows;

  // Of the result. A range that does not lie within what there is counts as empty.
  struct Span {
    int first = 0, end = 0;
  };
  OCTET_HOST_DEVICE constexpr Span operator()(int g) const {
    const int64_t begin = offsets == nullptr ? 0 : offsets[g], end = offsets == nullptr ? rows : offsets[g + 1];
    const bool is_within = 0 <= begin && begin <= end && end <= rows;
    return {is_within ? int(begin) : 0, is_within ? int(end) : 0};
  }
};
// Groups are ranges of what is summed, and each has as many rows of the result: group g sums offsets[g + 1] -
// offsets[g] of k, from offsets[g] on, or, where there are block_offsets, from 128 * block_offsets[g]. offsets: null:
// one group of all k.
struct SumSpans {
  static constexpr bool kIsOfSums = true;
  const int64_t *offsets, *block_offsets;
  int rows, k;  // rows of a group; k of all
  bool skips_empty;

  struct Span {
    int first = 0, end = 0, first_k = 0, depth = 0;
  };
  OCTET_HOST_DEVICE constexpr Span operator()(int g) const {
    const int64_t begin = offsets == nullptr ? 0 : offsets[g], end = offsets == nullptr ? k : offsets[g + 1];
    const int64_t first_k = block_offsets == nullptr ? begin : 128 * block_offsets[g], depth = end - begin;
    const bool is_within = 0 <= first_k && 0 <= depth && first_k + depth <= k;
    const int first = g * rows, sums = is_within ? int(depth) : 0;
    return {first, first + (skips_empty && sums == 0 ? 0 : rows), is_within ? int(first_k) : 0, sums};
  }
};

// Finds tiles by number, each not before the last; rows, k and tiles are fewer than 2^31.
template <class Spans>
class TileWalk {
 public:
  OCTET_HOST_DEVICE constexpr TileWalk(const Spans& spans, int groups, int tile_rows, int column_tiles)
      : spans_(spans), groups_(groups), tile_rows_(tile_rows), column_tiles_(column_tiles) {
    if (groups_ > 0) enter();
  }

  // False where there are no more.
  OCTET_HOST_DEVICE constexpr bool find(int index, GroupTile& tile) {
    while (group_ < groups_ && index - before_ >= row_tiles_ * column_tiles_) {
      before_ += row_tiles_ * column_tiles_;
      if (++group_ < groups_) enter();
    }
    if (group_ >= groups_) return false;
    const TilePlace place = place_in_bands(index - before_, row_tiles_, column_tiles_);
    tile.group = group_;
    tile.first = span_.first + place.row * tile_rows_;
    const int left = span_.end - tile.first;
    tile.count = left < tile_rows_ ? left : tile_rows_;
    tile.column = place.column;
    tile.line = tile.first;
    if constexpr (Spans::kIsOfSums) {
      tile.line = place.row * tile_rows_;
      tile.first_k = span_.first_k, tile.depth = span_.depth;
    }
    return true;
  }

 private:
  OCTET_HOST_DEVICE constexpr void enter() {
    span_ = spans_(group_);
    row_tiles_ = (span_.end - span_.first + tile_rows_ - 1) / tile_rows_;
  }

  Spans spans_;
  typename Spans::Span span_ = {};
  int groups_, tile_rows_, column_tiles_;
  int group_ = 0, row_tiles_ = 0, before_ = 0;
};

// A place in a ring of stages, and the parity of the phase in which the ring passes it.
template <int stages>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;
  OCTET_HOST_DEVICE constexpr void advance() {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

}  // namespace octet::kernels::cuda
