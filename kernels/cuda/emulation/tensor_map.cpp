#include "kernels/cuda/tensor_map.h"

#include <fmt/format.h>

#include "core/base/error.h"

namespace octet::kernels::cuda {

TensorMap encode(const MatrixTiles& tiles) {
  require(can_be_tiled(tiles), "encode: tiles of {} by {} of {} by {} elements of {} bytes at {}, {} bytes apart",
          tiles.tile_rows, tiles.tile_columns, tiles.rows, tiles.columns, tiles.element_bytes, fmt::ptr(tiles.data),
          tiles.row_bytes);
  TensorMap map{};
  static_assert(sizeof tiles <= sizeof map);
  std::memcpy(&map, &tiles, sizeof tiles);
  return map;
}

}  // namespace octet::kernels::cuda
