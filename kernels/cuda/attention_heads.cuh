// What the forms of attention share: how heads lie in rows, and which tile of which head a block of a grid has.
#pragma once

#include "kernels/attention.h"
#include "kernels/cuda/device.cuh"

namespace octet::kernels::cuda {

inline constexpr int kKeyBlock = 64;  // of a block; the CPU's too, kernels/cpu/attention.cpp

// One head's columns of rows that hold several, from the row at() on; before it, the first head's of all rows.
template <class Scalar>
struct HeadRows {
  const Scalar* data;
  int64_t row_stride;
  int columns;
  bool is_aligned;  // each head of each row begins on a boundary of 16 bytes

  __device__ __forceinline__ HeadRows at(int64_t row, int64_t head) const {
    return {data + row * row_stride + head * columns, row_stride, columns, is_aligned};
  }
};
template <class Scalar>
HeadRows<Scalar> head_rows(const ConstView& x, int64_t heads) {
  const int64_t columns = x.cols() / heads;
  const uint64_t together =
      reinterpret_cast<uintptr_t>(x.raw()) | uint64_t((x.row_stride() | columns) * int64_t(sizeof(Scalar)));
  return {x.data<Scalar>(), x.row_stride(), int(columns), together % 16 == 0};
}

// Forward and decode: `batch` sequences, each with the last `queries` of its `keys` positions.
template <class Scalar>
struct ForwardHeads {
  HeadRows<Scalar> q, k, v;
  Scalar* o;
  int64_t o_stride;
  float* lse;  // null: not wanted
  int64_t lse_stride;
  int64_t batch, queries, keys, heads, group;  // group: query heads of a key-value head
  float scale;
};
template <class Scalar>
struct BackwardHeads {
  HeadRows<Scalar> q, k, v, grad_o;
  const float *lse, *delta;  // [T, H]; delta[i] = grad_o[i] . o[i]
  int64_t lse_stride;
  Scalar *dq, *dk, *dv;
  int64_t dq_stride, dk_stride, dv_stride;
  int64_t batch, S, heads, group;
  float scale;
};

// Block index of a grid of one axis: tile after tile, each for all heads of all sequences, so that blocks that begin
// together are equally long and those of a group of heads meet in the cache. The longest come first.
struct HeadTile {
  int64_t sequence, head, tile;
};
__device__ __forceinline__ HeadTile head_tile(int64_t heads, int64_t batch, bool last_first) {
  const uint32_t across = uint32_t(heads * batch), tile = blockIdx.x / across, rest = blockIdx.x % across;
  return {int64_t(rest) / heads, int64_t(rest) % heads, int64_t(last_first ? gridDim.x / across - 1 - tile : tile)};
}
inline dim3 head_grid(const char* name, int64_t heads, int64_t batch, int64_t tiles, int64_t pieces = 1) {
  require(heads * batch * tiles < int64_t(1) << 31, "{}: {} heads of {} sequences in {} tiles; wanted less than 2^31",
          name, heads, batch, tiles);
  return blocks(heads * batch * tiles, pieces);
}

}  // namespace octet::kernels::cuda
