// How a GPU copies tiles of a matrix by itself (CUDA driver API, cuTensorMapEncodeTiled): the matrix and the tile are
// described on the host, and a kernel takes the description as a __grid_constant__ parameter
// (kernels/cuda/ptx/tile_copy.cuh). Two forms of encode: tensor_map.cpp, and emulation/tensor_map.cpp for tests.
#pragma once

#include <cstdint>
#include <cstring>

namespace octet::kernels::cuda {

struct MatrixTiles {
  const void* data;
  int64_t element_bytes;  // 1 or 2
  int64_t rows, columns;
  int64_t row_bytes;  // from one row to the next
  int64_t tile_rows, tile_columns;
};
constexpr int64_t tile_bytes(const MatrixTiles& m) { return m.tile_rows * m.tile_columns * m.element_bytes; }

inline constexpr int64_t kMostTiledRows = int64_t(1) << 31;  // and columns: coordinates are 32-bit and signed
// Whether a GPU can: the matrix and its rows begin on boundaries of 16 bytes, sizes and steps are below the limits of
// the descriptor, and the rows of a tile are the 128 bytes of the swizzle.
inline bool can_be_tiled(const MatrixTiles& m) {
  constexpr int64_t kMostRowBytes = int64_t(1) << 40;
  return reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.row_bytes % 16 == 0 && m.row_bytes < kMostRowBytes &&
         m.columns * m.element_bytes <= m.row_bytes && 0 < m.rows && m.rows < kMostTiledRows && 0 < m.columns &&
         m.columns < kMostTiledRows && m.tile_columns * m.element_bytes == 128 && 0 < m.tile_rows && m.tile_rows <= 256;
}

struct alignas(128) TensorMap {
  uint64_t words[16];
};
// Of what can_be_tiled.
TensorMap encode(const MatrixTiles& tiles);

#ifndef __CUDACC__
// What an emulated map holds.
inline const MatrixTiles& tiles_of(const TensorMap& map) { return *reinterpret_cast<const MatrixTiles*>(map.words); }
#endif

}  // namespace octet::kernels::cuda
