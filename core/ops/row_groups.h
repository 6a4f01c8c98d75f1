// How the rows of a product are divided among weights: expert e takes rows offsets[e] .. offsets[e+1] - 1.
#pragma once

#include "core/tensor/tensor.h"

namespace octet {

struct RowGroups {
  Tensor offsets;         // [G + 1] int64
  Tensor block_offsets;   // [G + 1] int64, in blocks of 128 rows, each group rounded up (kernels/quantize.h)
  Tensor source;          // [R] int32: row r is row source[r] of the input; not defined: row r is r
  int64_t num_rows = 0;   // R: offsets[G], or what there is room for (parallel/device_dispatcher.h)
  bool is_dense = false;  // made by dense()

  // offsets, for kernels; none where one group takes all rows, which some of them can do better.
  ConstView cuts() const { return is_dense ? ConstView() : ConstView(offsets); }

  // How many rows there are, [1], for kernels that look at no groups; none where there are num_rows of them always.
  ConstView count() const { return is_dense ? ConstView() : offsets.slice_rows(num_groups(), 1); }

  int64_t num_groups() const { return offsets.size(0) - 1; }
  // P: rows of an FP8 operand of a weight gradient, each group padded to whole blocks. On a GPU, whose offsets the host
  // does not read, the most that they can be.
  int64_t num_padded_rows() const;

  // One group. Made once for each number of rows, and shared.
  static RowGroups dense(int64_t num_rows, Device device);
  static RowGroups of_offsets(const Tensor& offsets, const Tensor& source, int64_t num_rows);
};

}  // namespace octet
