#include "kernels/cuda/tensor_map.h"

#include <cuda.h>

#include <bit>

#include "core/base/error.h"
#include "kernels/cuda/cuda_check.h"

namespace octet::kernels::cuda {
namespace {

// The driver's function, found at run time: octet is not linked with the driver, which may be absent.
using Encode = decltype(&cuTensorMapEncodeTiled);
Encode driver_encode() {
  static const Encode found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    constexpr unsigned kSince = 12000;  // the CUDA that has it
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kSince, cudaEnableDefault, &result),
          "cudaGetDriverEntryPointByVersion");
    require(ErrorKind::kDevice, result == cudaDriverEntryPointSuccess && function != nullptr,
            "the driver has no cuTensorMapEncodeTiled; wanted one of CUDA 12 or newer");
    return reinterpret_cast<Encode>(function);
  }();
  return found;
}

}  // namespace

TensorMap encode(const MatrixTiles& tiles) {
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= alignof(CUtensorMap));
  const cuuint64_t sizes[2] = {cuuint64_t(tiles.columns), cuuint64_t(tiles.rows)};
  const cuuint64_t steps[1] = {cuuint64_t(tiles.row_bytes)};
  const cuuint32_t box[2] = {cuuint32_t(tiles.tile_columns), cuuint32_t(tiles.tile_rows)};
  const cuuint32_t each[2] = {1, 1};
  CUtensorMap map{};
  const CUresult status = driver_encode()(
      &map, tiles.element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
      const_cast<void*>(tiles.data), sizes, steps, box, each, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(ErrorKind::kDevice, status == CUDA_SUCCESS, "cuTensorMapEncodeTiled: error {} for {} by {} elements",
          int(status), tiles.rows, tiles.columns);
  return std::bit_cast<TensorMap>(map);
}

}  // namespace octet::kernels::cuda
