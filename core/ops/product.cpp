#include "core/ops/product.h"

#include "kernels/elementwise.h"
#include "kernels/fp8_gemm.h"
#include "kernels/gemm.h"

namespace octet {
namespace {

int64_t out_features(const Parameter& weight) { return weight.shape()[-2]; }
int64_t in_features(const Parameter& weight) { return weight.shape()[-1]; }

// Transposed FP8 rows of a matrix whose groups are padded to whole blocks: [C, P] and [C, P/128].
Fp8Rows empty_columns(int64_t columns, const RowGroups& groups) {
  const int64_t padded = groups.num_padded_rows();
  return {.codes = empty({columns, padded}, DType::kFloat8E4M3, MemoryCategory::kWorkspace),
          .scale = empty({columns, padded / 128}, DType::kFloat32, MemoryCategory::kWorkspace)};
}

Fp8Rows quantize_columns(const Tensor& x, const RowGroups& groups, kernels::QuantizeStats* stats) {
  Fp8Rows columns = empty_columns(x.cols(), groups);
  kernels::quantize_columns({.x = x,
                             .offsets = groups.offsets,
                             .block_offsets = groups.block_offsets,
                             .codes = columns.codes,
                             .scale = columns.scale,
                             .stats = stats},
                            x.stream());
  return columns;
}

}  // namespace

Tensor fprop_fp8(const Fp8Rows& input, const RowGroups& groups, const Parameter& weight, kernels::Emulation emulation,
                 DType out) {
  Tensor y = empty({groups.num_rows, out_features(weight)}, out);
  kernels::fp8_grouped_gemm({.a = input.codes,
                             .a_scale = input.scale,
                             .b = weight.fp8().codes,
                             .b_scale = weight.fp8().scale,
                             .offsets = groups.offsets,
                             .rows = groups.source,
                             .c = y,
                             .emulation = emulation},
                            y.stream());
  return y;
}

Tensor fprop_plain(const Tensor& input, const RowGroups& groups, const Parameter& weight, DType out) {
  Tensor y = empty({groups.num_rows, out_features(weight)}, out);
  kernels::grouped_gemm({.a = input, .b = weight.weight(), .offsets = groups.offsets, .rows = groups.source, .c = y},
                        y.stream());
  return y;
}

Tensor fprop(const LinearInput& input, const RowGroups& groups, const Parameter& weight, DType out) {
  if (weight.form() == WeightForm::kFp8Block) {
    return fprop_fp8(input.quantized(), groups, weight, input.numerics().emulation, out);
  }
  return fprop_plain(input.values(), groups, weight, out);
}

OutputGradient::OutputGradient(const Tensor& dy, const RowGroups& groups, const Parameter& weight,
                               const Numerics& numerics)
    : dy_(dy), groups_(groups), weight_(weight), numerics_(numerics) {
  // Plain products want one dtype: the float32 gradient of the router's logits is rounded to that of the gate.
  if (weight.form() != WeightForm::kFp8Block && dy.dtype() != weight.weight().dtype()) {
    dy_ = empty(dy.shape(), weight.weight().dtype(), MemoryCategory::kWorkspace);
    kernels::cast({.x = dy, .y = dy_}, dy.stream());
  }
}

Tensor OutputGradient::dgrad() const {
  Tensor dx = empty({dy_.rows(), in_features(weight_)}, numerics_.activation_dtype());
  if (weight_.form() == WeightForm::kFp8Block) {
    const AllocateAs workspace(MemoryCategory::kWorkspace);
    const Fp8Rows rows = quantize_rows(dy_, numerics_.stats(&Fp8Counts::grad_output));
    kernels::fp8_grouped_gemm({.a = rows.codes,
                               .a_scale = rows.scale,
                               .b = weight_.fp8().codes_t,
                               .b_scale = weight_.fp8().scale_t,
                               .offsets = groups_.offsets,
                               .rows = {},
                               .c = dx,
                               .emulation = numerics_.emulation},
                              dx.stream());
  } else {
    kernels::grouped_gemm(
        {.a = dy_, .b = weight_.weight(), .offsets = groups_.offsets, .rows = {}, .c = dx, .b_is_kn = true},
        dx.stream());
  }
  return dx;
}

void OutputGradient::wgrad(SavedInput& x, Parameter& weight) const {
  if (weight.form() == WeightForm::kFp8Block) {
    const Fp8Rows& rows = x.quantized();
    const Fp8Rows columns = empty_columns(rows.codes.cols(), groups_);
    kernels::requantize_columns({.codes = rows.codes,
                                 .scale = rows.scale,
                                 .rows = groups_.source,
                                 .offsets = groups_.offsets,
                                 .block_offsets = groups_.block_offsets,
                                 .out_codes = columns.codes,
                                 .out_scale = columns.scale,
                                 .stats = numerics_.stats(&Fp8Counts::wgrad_activation)},
                                dy_.stream());
    wgrad_fp8(columns, weight);
  } else {
    kernels::grouped_wgrad(
        {.dy = dy_, .x = x.values(), .offsets = groups_.offsets, .rows = groups_.source, .dw = weight.grad()},
        dy_.stream());
  }
}

void OutputGradient::wgrad_values(const Tensor& x, Parameter& weight) const {
  if (weight.form() == WeightForm::kFp8Block) {
    wgrad_fp8(quantize_columns(x, groups_, numerics_.stats(&Fp8Counts::wgrad_activation)), weight);
  } else {
    kernels::grouped_wgrad({.dy = dy_, .x = x, .offsets = groups_.offsets, .rows = {}, .dw = weight.grad()},
                           dy_.stream());
  }
}

void OutputGradient::wgrad_fp8(const Fp8Rows& columns_of_x, Parameter& weight) const {
  const Fp8Rows columns_of_dy = quantize_columns(dy_, groups_, numerics_.stats(&Fp8Counts::wgrad_grad));
  kernels::fp8_grouped_wgrad({.dy = columns_of_dy.codes,
                              .dy_scale = columns_of_dy.scale,
                              .x = columns_of_x.codes,
                              .x_scale = columns_of_x.scale,
                              .block_offsets = groups_.block_offsets,
                              .dw = weight.grad(),
                              .emulation = numerics_.emulation},
                             dy_.stream());
}

}  // namespace octet
