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
  int first;   // row
  int count;   // of rows, at most a tile's
  int column;  // in tiles
};

// Finds tiles by number, each not before the last; rows and tiles are fewer than 2^31. offsets: [groups + 1]; null: one
// group of all rows. A range that does not lie within the rows there are counts as empty.
class TileWalk {
 public:
  OCTET_HOST_DEVICE constexpr TileWalk(const int64_t* offsets, int groups, int rows, int tile_rows, int column_tiles)
      : offsets_(offsets), rows_(rows), groups_(groups), tile_rows_(tile_rows), column_tiles_(column_tiles) {
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
    tile.first = begin_ + place.row * tile_rows_;
    const int left = end_ - tile.first;
    tile.count = left < tile_rows_ ? left : tile_rows_;
    tile.column = place.column;
    return true;
  }

 private:
  OCTET_HOST_DEVICE constexpr void enter() {
    const int64_t begin = offsets_ == nullptr ? 0 : offsets_[group_];
    const int64_t end = offsets_ == nullptr ? rows_ : offsets_[group_ + 1];
    const bool is_within = 0 <= begin && begin <= end && end <= rows_;
    begin_ = is_within ? int(begin) : 0;
    end_ = is_within ? int(end) : 0;
    row_tiles_ = (end_ - begin_ + tile_rows_ - 1) / tile_rows_;
  }

  const int64_t* offsets_;
  int rows_, groups_, tile_rows_, column_tiles_;
  int group_ = 0, begin_ = 0, end_ = 0, row_tiles_ = 0, before_ = 0;
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
