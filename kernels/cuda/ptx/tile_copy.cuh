// Copies of tiles between matrices and shared memory by one thread (PTX ISA, cp.async.bulk.tensor), as a TensorMap
// says. A tile lies on a boundary of 1024 bytes of shared memory, its rows in 128-byte swizzling. What of a tile lies
// outside of the matrix comes as zeros, and is not stored.
#pragma once

#include <cstdint>

#include "kernels/cuda/tensor_map.h"
#ifndef __CUDACC__
#include <cstring>

#include "kernels/cuda/emulation/block.h"
#include "kernels/cuda/gemm_tile.h"
#endif

namespace octet::kernels::cuda::ptx {

#ifndef __CUDACC__
// Calls copy(byte in the tile, address in the matrix or null, bytes) for each 16 bytes of the tile at (column, row).
template <class Copy>
void for_pieces_of_tile(const TensorMap& map, uint32_t shared, int column, int row, Copy&& copy) {
  const MatrixTiles& m = tiles_of(map);
  if (shared % 1024 != 0) emulation::fault("a tile off its boundary of 1024 bytes");
  const int64_t row_bytes = m.tile_columns * m.element_bytes;
  for (int64_t r = 0; r < m.tile_rows; ++r) {
    for (int64_t byte = 0; byte < row_bytes; byte += 16) {
      const int64_t i = row + r, first = int64_t(column) * m.element_bytes + byte;
      const int64_t left = m.columns * m.element_bytes - first;
      const bool is_inside = 0 <= i && i < m.rows && first >= 0 && left > 0;
      char* const at = static_cast<char*>(const_cast<void*>(m.data)) + i * m.row_bytes + first;
      copy(swizzled_offset(uint32_t(r), uint32_t(byte)), is_inside ? at : nullptr, left < 16 ? left : 16);
    }
  }
}
inline std::vector<std::byte> tile_at(const TensorMap& map, uint32_t shared, int column, int row) {
  std::vector<std::byte> tile(size_t(tile_bytes(tiles_of(map))));
  for_pieces_of_tile(map, shared, column, row, [&](uint32_t offset, const char* from, int64_t bytes) {
    if (from != nullptr) std::memcpy(tile.data() + offset, from, size_t(bytes));
  });
  return tile;
}
#endif

// The tile whose first element is (row, column); its bytes are told to the mbarrier, those outside too.
__device__ __forceinline__ void load_tile(uint32_t to, const TensorMap& map, int column, int row, uint32_t barrier) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
#else
  emulation::load_tile(to, tile_at(map, to, column, row), barrier);
#endif
}
// The same tile for each block of the cluster in the set, a bit each: to this place in its shared memory, its bytes
// told to the mbarrier that lies at this one there.
__device__ __forceinline__ void load_tile_to(uint32_t blocks, uint32_t to, const TensorMap& map, int column, int row,
                                             uint32_t barrier) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(uint16_t(blocks))
      : "memory");
#else
  emulation::load_tile_to(blocks, to, tile_at(map, to, column, row), barrier);
#endif
}
__device__ __forceinline__ void store_tile(const TensorMap& map, int column, int row, uint32_t from) {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(column),
               "r"(row), "r"(from)
               : "memory");
#else
  const size_t bytes = size_t(tile_bytes(tiles_of(map)));
  emulation::check_async_read(from, bytes);
  emulation::begin_reading(emulation::Reader::kStore, from, bytes);
  const std::byte* const tile = emulation::dynamic_shared(from, bytes);
  for_pieces_of_tile(map, from, column, row, [&](uint32_t offset, char* to, int64_t n) {
    if (to != nullptr) std::memcpy(to, tile + offset, size_t(n));
  });
#endif
}
// Ends a batch of stores.
__device__ __forceinline__ void commit_stores() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  emulation::commit_reading(emulation::Reader::kStore);
#endif
}
// All batches of stores of this thread but the latest `most` have read their shared memory.
template <int most>
__device__ __forceinline__ void wait_for_stores() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(most) : "memory");
#else
  emulation::wait_for_reading(emulation::Reader::kStore, most);
#endif
}

}  // namespace octet::kernels::cuda::ptx
