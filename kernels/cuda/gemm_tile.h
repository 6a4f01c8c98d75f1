// The arithmetic of places that the matrix products on a GPU share: plain functions, for kernels and for their tests.
#pragma once

#include <cstdint>

#ifndef __CUDACC__
#define OCTET_HOST_DEVICE
#else
#define OCTET_HOST_DEVICE __host__ __device__
#endif

namespace octet::kernels::cuda {

// A piece of the rows of one group.
struct RowTile {
  int group = -1;  // -1: there is no such tile
  int64_t first = 0, count = 0;
};

// Tile `index` of groups that are each cut every `tile_rows`, the groups in order. offsets: [groups + 1]; null: one
// group of all rows. R rows of G groups have at most R / tile_rows + G tiles, rounded down, wherever the groups begin.
OCTET_HOST_DEVICE constexpr RowTile find_row_tile(const int64_t* offsets, int groups, int64_t rows, int64_t tile_rows,
                                                  int64_t index) {
  for (int g = 0; g < groups; ++g) {
    const int64_t begin = offsets == nullptr ? 0 : offsets[g], end = offsets == nullptr ? rows : offsets[g + 1];
    const int64_t tiles = (end - begin + tile_rows - 1) / tile_rows;
    if (index < tiles) {
      const int64_t first = begin + index * tile_rows, left = end - first;
      return {g, first, left < tile_rows ? left : tile_rows};
    }
    index -= tiles;
  }
  return {};
}
constexpr int64_t most_row_tiles(int groups, int64_t rows, int64_t tile_rows) { return rows / tile_rows + groups; }

// An operand of wgmma in shared memory: rows of 128 bytes along k, in atoms of 8 rows (1024 bytes, on a boundary of
// 1024). The 16-byte pieces of row r lie in the order piece ^ (r mod 8), so that rows do not share banks (PTX ISA,
// "Asynchronous Warpgroup Level Matrix Shared Memory Layout", 128-byte swizzling).
inline constexpr int kSwizzledRowBytes = 128;
OCTET_HOST_DEVICE constexpr uint32_t swizzled_offset(uint32_t row, uint32_t byte) {
  return row * kSwizzledRowBytes + ((byte / 16 ^ row % 8) * 16 + byte % 16);
}
// What wgmma does to an address: bits 7 to 9 are added to bits 4 to 6 without carry.
OCTET_HOST_DEVICE constexpr uint32_t swizzled_address(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// The matrix descriptor of such an operand (PTX ISA, "Matrix Descriptor Format"): the address in units of 16 bytes in
// bits 0 to 13; the distance between atoms along the rows, likewise, in bits 32 to 45; swizzling of 128 bytes, 1, in
// bits 62 and 63. The leading distance, bits 16 to 29, has no meaning with it.
OCTET_HOST_DEVICE constexpr uint64_t wgmma_descriptor(uint32_t shared_address) {
  constexpr uint64_t kAtomBytes = 8 * kSwizzledRowBytes;
  return uint64_t(shared_address >> 4 & 0x3fff) | uint64_t(1) << 16 | (kAtomBytes >> 4) << 32 | uint64_t(1) << 62;
}

// The same of an operand that lies along its lines: 64 of bfloat16 are the 128 bytes of a k, 8 of k an atom; 64 more
// lines follow `leading` bytes behind, 8 more of k 1024 (PTX ISA, "Strides", MN-major).
OCTET_HOST_DEVICE constexpr uint64_t transposed_descriptor(uint32_t shared_address, uint32_t leading) {
  constexpr uint64_t kAtomBytes = 8 * kSwizzledRowBytes;
  return uint64_t(shared_address >> 4 & 0x3fff) | uint64_t(leading >> 4) << 16 | (kAtomBytes >> 4) << 32 |
         uint64_t(1) << 62;
}

// Where element i of the result of wgmma m64nN lies that thread `thread` of a warpgroup holds.
struct Place {
  int row, column;
};
OCTET_HOST_DEVICE constexpr Place wgmma_place(int thread, int i) {
  const int lane = thread % 32;
  return {thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8, i / 4 * 8 + lane % 4 * 2 + i % 2};
}

}  // namespace octet::kernels::cuda
