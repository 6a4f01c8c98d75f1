// Grids of one thread for each eight columns of each row, and the copy of rows through an index.
#pragma once

#include "kernels/cuda/device.cuh"

namespace octet::kernels::cuda {

inline constexpr int kRowThreads = 256;

// The row and the first column of this thread. The count of threads is below 2^32, so that one division of 32 bits is
// enough: row_grid sees to it.
struct RowPlace {
  int64_t row, column;
};
__device__ __forceinline__ RowPlace row_place(uint32_t pieces, int per_piece = kVector) {
  const uint32_t flat = blockIdx.x * uint32_t(kRowThreads) + threadIdx.x;
  const uint32_t row = flat / pieces;
  return {int64_t(row), int64_t(flat - row * pieces) * per_piece};
}
// How many rows there are of those that there is room for.
__device__ __forceinline__ int64_t rows_there(const int64_t* num_rows, int64_t R) {
  return num_rows == nullptr ? R : *num_rows;
}
inline dim3 row_grid(int64_t rows, int64_t pieces) {
  require(rows * pieces <= (int64_t(1) << 32) - kRowThreads,
          "a kernel over {} rows of {} pieces; wanted less than 2^32 pieces", rows, pieces);
  return blocks(ceil_div<int64_t>(rows * pieces, kRowThreads));
}

// y[r,:] = x[source[r],:] by words.
template <class Words>
__global__ void __launch_bounds__(kRowThreads)
    copy_rows_kernel(const char* x, int64_t x_stride, int64_t x_rows, const int32_t* source, char* y, int64_t y_stride,
                     int64_t R, const int64_t* num_rows, uint32_t pieces, bool skips, gpu::Fault fault,
                     gpu::FaultRecord* record) {
  const RowPlace at = row_place(pieces, int(sizeof(Words)));
  if (at.row >= rows_there(num_rows, R)) return;
  const int64_t from = source[at.row];
  if (skips && from == -1) return;
  if (!is_in_range(from, x_rows, fault, record)) return;
  store_words(y + at.row * y_stride + at.column, load_words<Words>(x + from * x_stride + at.column));
}
// fault: what a source is that x has no row for. skips: -1 is none, and leaves the row as it is.
inline void copy_rows(const char* name, const ConstView& x, const ConstView& source, const View& y, gpu::Fault fault,
                      Stream& stream, bool skips = false, const ConstView& num_rows = {}) {
  const int64_t size = size_of(y.dtype()), bytes = y.cols() * size;
  if (bytes == 0) return;
  const auto copy = [&]<class Words>(Words) {
    const int64_t pieces = bytes / int64_t(sizeof(Words));
    launch(name, row_grid(y.rows(), pieces), kRowThreads, 0, stream, copy_rows_kernel<Words>, x.data<char>(),
           x.row_stride() * size, x.rows(), source.data<int32_t>(), y.data<char>(), y.row_stride() * size, y.rows(),
           num_rows.data<int64_t>(), uint32_t(pieces), skips, fault, gpu::fault_record(stream.device()));
  };
  const uint64_t together = reinterpret_cast<uintptr_t>(x.raw()) | reinterpret_cast<uintptr_t>(y.raw()) |
                            uint64_t(bytes | x.row_stride() * size | y.row_stride() * size);
  if (together % 16 == 0) return copy(uint4());
  if (together % 4 == 0) return copy(uint32_t());
  copy(uint8_t());
}

}  // namespace octet::kernels::cuda
