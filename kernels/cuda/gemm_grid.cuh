// The grids of the matrix products: which tile of which group a block computes. A Tile (gemm_plain.cuh,
// gemm_tensor.cuh) computes it with 256 threads:
//   kRows, kColumns, kSharedBytes, run(a, b, row, rows, column, columns, K, write)
// calls write(i, j, sum) for each element of the result. Where groups begin is read on the device, so the grid has as
// many blocks as any cut into groups may need, and those without a tile end at once.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm_tile.h"

namespace octet::kernels::cuda {

inline constexpr int kGemmThreads = 256;
inline constexpr int64_t kMostBlocksY = 65535;  // of a grid

// An operand: element k of line i (a row of A, a column of B), and the scale of block k / 128 of line i.
template <class Element>
struct Operand {
  const Element* data;
  int64_t line_step, k_step;
  const int32_t* lines = nullptr;       // where line i lies; null: at i
  const int32_t* ks = nullptr;          // where k lies; null: at k
  int64_t first_line = 0, first_k = 0;  // of the group, before `lines` and `ks`
  const float* scale = nullptr;
  int64_t scale_line_step = 0, scale_block_step = 0, lines_of_scale = 1, first_block = 0;

  __device__ __forceinline__ int64_t line(int64_t i) const {
    return lines != nullptr ? lines[first_line + i] : first_line + i;
  }
  __device__ __forceinline__ int64_t k_at(int64_t k) const { return ks != nullptr ? ks[first_k + k] : first_k + k; }
  __device__ __forceinline__ Element at(int64_t i, int64_t k) const {
    return data[line(i) * line_step + k_at(k) * k_step];
  }
  __device__ __forceinline__ float scale_at(int64_t i, int64_t block) const {
    return scale[line(i) / lines_of_scale * scale_line_step + (first_block + block) * scale_block_step];
  }
};

template <class Result>
struct ResultMatrix {
  Result* data;
  int64_t row_step;
  bool accumulate;

  __device__ __forceinline__ void write(int64_t i, int64_t j, float sum) const {
    Result& at = data[i * row_step + j];
    if constexpr (std::is_same_v<Result, float>) {
      at = accumulate ? at + sum : sum;
    } else {
      at = from_float<Result>(sum);
    }
  }
};

// c[r, n] over the rows r of each group; b and its scale are those of group 0, the others follow at their steps.
template <class Tile, class Element, class Result>
__global__ void __launch_bounds__(kGemmThreads, 1)
    grouped_rows_kernel(Operand<Element> a, Operand<Element> b, int64_t b_group_step, int64_t scale_group_step,
                        const int64_t* offsets, int groups, int64_t R, int64_t N, int64_t K, ResultMatrix<Result> c) {
  const RowTile tile = find_row_tile(offsets, groups, R, Tile::kRows, blockIdx.y);
  if (tile.group < 0) return;
  b.data += tile.group * b_group_step;
  if (b.scale != nullptr) b.scale += tile.group * scale_group_step;
  const int64_t column = int64_t(blockIdx.x) * Tile::kColumns, left = N - column;
  Tile::run(a, b, tile.first, tile.count, column, left < Tile::kColumns ? left : Tile::kColumns, K,
            [&](int64_t i, int64_t j, float sum) { c.write(i, j, sum); });
}

// dw[g, n, k] summed over the rows of group g, which are those of the operands from offsets[g], or from 128 *
// block_offsets[g]. A group without rows is left as it is where sums are added, and becomes 0 where not.
template <class Tile, class Element>
__global__ void __launch_bounds__(kGemmThreads, 1)
    grouped_sums_kernel(Operand<Element> dy, Operand<Element> x, const int64_t* offsets, const int64_t* block_offsets,
                        int64_t R, int64_t N, int64_t K, ResultMatrix<float> dw) {
  const int64_t g = blockIdx.z;
  const int64_t begin = offsets == nullptr ? 0 : offsets[g], end = offsets == nullptr ? R : offsets[g + 1];
  if (begin == end && dw.accumulate) return;
  dy.first_k = x.first_k = block_offsets == nullptr ? begin : 128 * block_offsets[g];
  dy.first_block = x.first_block = block_offsets == nullptr ? 0 : block_offsets[g];
  dw.data += g * N * dw.row_step;
  const int64_t row = int64_t(blockIdx.y) * Tile::kRows, column = int64_t(blockIdx.x) * Tile::kColumns;
  const int64_t rows = N - row, columns = K - column;
  Tile::run(dy, x, row, rows < Tile::kRows ? rows : Tile::kRows, column,
            columns < Tile::kColumns ? columns : Tile::kColumns, end - begin,
            [&](int64_t i, int64_t j, float sum) { dw.write(i, j, sum); });
}

template <class Tile, class Element, class Result>
void launch_grouped_rows(const char* name, const Operand<Element>& a, const Operand<Element>& b, int64_t b_group_step,
                         int64_t scale_group_step, ConstView offsets, int64_t R, int64_t N, int64_t K,
                         const ResultMatrix<Result>& c, Stream& stream) {
  if (R == 0 || N == 0) return;
  const int groups = offsets.is_defined() ? int(offsets.num_elements() - 1) : 1;
  const int64_t row_tiles = most_row_tiles(groups, R, Tile::kRows);
  if (row_tiles > kMostBlocksY) {
    fail(ErrorKind::kArgument,
         {.what = std::string(name) + ": " + std::to_string(R) + " rows are " + std::to_string(row_tiles) +
                  " tiles; wanted at most " + std::to_string(kMostBlocksY),
          .where = "",
          .why = "",
          .fix = ""});
  }
  launch(name, blocks(ceil_div<int64_t>(N, Tile::kColumns), row_tiles), kGemmThreads, Tile::kSharedBytes, stream,
         grouped_rows_kernel<Tile, Element, Result>, a, b, b_group_step, scale_group_step,
         offsets.is_defined() ? offsets.data<int64_t>() : nullptr, groups, R, N, K, c);
}
template <class Tile, class Element>
void launch_grouped_sums(const char* name, const Operand<Element>& dy, const Operand<Element>& x, ConstView offsets,
                         ConstView block_offsets, int64_t R, int64_t N, int64_t K, const ResultMatrix<float>& dw,
                         Stream& stream) {
  if (N == 0 || K == 0) return;
  const int64_t groups = offsets.is_defined() ? offsets.num_elements() - 1 : 1;
  launch(name, blocks(ceil_div<int64_t>(K, Tile::kColumns), ceil_div<int64_t>(N, Tile::kRows), groups), kGemmThreads,
         Tile::kSharedBytes, stream, grouped_sums_kernel<Tile, Element>, dy, x,
         offsets.is_defined() ? offsets.data<int64_t>() : nullptr,
         block_offsets.is_defined() ? block_offsets.data<int64_t>() : nullptr, R, N, K, dw);
}

}  // namespace octet::kernels::cuda
