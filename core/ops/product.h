// The three products of a linear layer, y = x w^T, in the form that the weight has: forward (fprop), gradient of the
// input (dgrad) and gradient of the weight (wgrad). Not recorded: core/ops/linear.h and core/ops/swiglu_ffn.h build on
// them.
//   FP8:  fprop  x 1x128 by w 128x128        dgrad  dy 1x128 by w^T 128x128
//         wgrad  dy 128x1 by x 128x1, the columns of x made from its cached rows; added to the float32 gradient
//                or both 128x128, made of their rows by shifting exponents, where weight.wgrad_tiles()
#pragma once

#include "core/autograd/parameter.h"
#include "core/ops/linear_input.h"
#include "core/ops/row_groups.h"

namespace octet {

// y[r,:] = input[source[r],:] w_g^T, [R, N], g the group of r.
Tensor fprop(const LinearInput& input, const RowGroups& groups, const Parameter& weight, DType out);
// The same for an input that is in FP8 already, or in the weight's own dtype.
Tensor fprop_fp8(const Fp8Rows& input, const RowGroups& groups, const Parameter& weight, kernels::Emulation emulation,
                 DType out);
Tensor fprop_plain(const Tensor& input, const RowGroups& groups, const Parameter& weight, DType out);

// The columns of a saved input, as wgrad reads them.
Fp8Rows requantize_columns(const Fp8Rows& rows, const RowGroups& groups, kernels::QuantizeStats* stats);
// Codes of kernels::column_codes_shape(P, C) and scale [P/128, C] to be filled, P the rows of all groups in whole
// blocks of 128.
Fp8Rows empty_columns(int64_t columns, const RowGroups& groups);

// An output gradient in the forms that dgrad and wgrad read: in FP8 rows and columns are made at once, from one look at
// dy; tiles are made of the rows when wgrad reads them.
class OutputGradient {
 public:
  // dy: [R, N] in the dtype that activation gradients have, or float32; or, with source, [S, N] of which row source[r]
  // is that of row r.
  OutputGradient(const Tensor& dy, const RowGroups& groups, const Parameter& weight, const Numerics& numerics,
                 const Tensor& source = {});
  // In FP8 already. columns: none where the weight's gradient takes tiles.
  OutputGradient(Fp8Rows rows, Fp8Rows columns, const RowGroups& groups, const Parameter& weight,
                 const Numerics& numerics);

  // dy w_g, [R, K]: rows in the order of the groups; a gather is not undone.
  Tensor dgrad() const;
  // weight.grad += dy^T x. x: as fprop read it.
  void wgrad(SavedInput& x, Parameter& weight) const;
  // The same for an x that is not a saved input, rows in the order of the groups: its columns in FP8, its rows, of
  // which tiles are made, or its values.
  void wgrad_columns(const Fp8Rows& columns_of_x, Parameter& weight) const;
  void wgrad_rows(Fp8Rows rows_of_x, Parameter& weight) const;
  void wgrad_values(const Tensor& x, Parameter& weight) const;

 private:
  Fp8Rows gathered_columns() const;
  void wgrad_tiles(const Fp8Rows& tiles_of_x, Parameter& weight) const;
  void multiply(const Fp8Rows& dy, const Fp8Rows& x, bool by_tiles, Parameter& weight) const;

  Tensor dy_;               // not in FP8, or with a source
  Fp8Rows rows_, columns_;  // in FP8; columns without a source, and where no tiles are made
  Tensor source_;           // of rows_ and, in FP8, of dy_
  const RowGroups& groups_;
  const Parameter& weight_;
  const Numerics& numerics_;
};

}  // namespace octet
