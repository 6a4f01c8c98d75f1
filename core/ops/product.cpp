#include "core/ops/product.h"

#include <utility>

#include "kernels/elementwise.h"
#include "kernels/fp8_gemm.h"
#include "kernels/gemm.h"
#include "kernels/permute.h"
#include "kernels/requantize_tiles.h"

namespace octet {
namespace {

int64_t out_features(const Parameter& weight) { return weight.shape()[-2]; }
int64_t in_features(const Parameter& weight) { return weight.shape()[-1]; }

// Rows of the groups, row r of them row source[r] of rows, in tiles: codes of column_codes_shape(P, C), P the rows in
// whole blocks of 128, and scale [P/128, ceil(C/128)].
Fp8Rows requantize_tiles(const Fp8Rows& rows, const RowGroups& groups, const Tensor& source,
                         kernels::QuantizeStats* stats) {
  const AllocateAs workspace(MemoryCategory::kWorkspace);
  const int64_t padded = groups.num_padded_rows(), C = rows.codes.cols();
  const Device device = rows.codes.device();
  Fp8Rows tiles{.codes = empty(kernels::column_codes_shape(padded, C, device), DType::kFloat8E4M3, device),
                .scale = empty({padded / 128, (C + 127) / 128}, DType::kFloat32, device)};
  kernels::requantize_tiles({.codes = rows.codes,
                             .scale = rows.scale,
                             .rows = source,
                             .offsets = groups.offsets,
                             .block_offsets = groups.block_offsets,
                             .out_codes = tiles.codes,
                             .out_scale = tiles.scale,
                             .stats = stats},
                            rows.codes.stream());
  return tiles;
}

}  // namespace

Fp8Rows empty_columns(int64_t columns, const RowGroups& groups) {
  const int64_t padded = groups.num_padded_rows();
  const Device device = groups.offsets.device();
  return {.codes = empty(kernels::column_codes_shape(padded, columns, device), DType::kFloat8E4M3,
                         MemoryCategory::kWorkspace, device),
          .scale = empty({padded / 128, columns}, DType::kFloat32, MemoryCategory::kWorkspace, device)};
}

Fp8Rows requantize_columns(const Fp8Rows& rows, const RowGroups& groups, kernels::QuantizeStats* stats) {
  Fp8Rows columns = empty_columns(rows.codes.cols(), groups);
  kernels::requantize_columns({.codes = rows.codes,
                               .scale = rows.scale,
                               .rows = groups.source,
                               .offsets = groups.offsets,
                               .block_offsets = groups.block_offsets,
                               .out_codes = columns.codes,
                               .out_scale = columns.scale,
                               .stats = stats},
                              rows.codes.stream());
  return columns;
}

Tensor fprop_fp8(const Fp8Rows& input, const RowGroups& groups, const Parameter& weight, kernels::Emulation emulation,
                 DType out) {
  Tensor y = empty({groups.num_rows, out_features(weight)}, out, groups.offsets.device());
  kernels::fp8_grouped_gemm({.a = input.codes,
                             .a_scale = input.scale,
                             .b = weight.fp8().codes,
                             .b_scale = weight.fp8().scale,
                             .offsets = groups.cuts(),
                             .rows = groups.source,
                             .c = y,
                             .emulation = emulation},
                            y.stream());
  return y;
}

Tensor fprop_plain(const Tensor& input, const RowGroups& groups, const Parameter& weight, DType out) {
  Tensor y = empty({groups.num_rows, out_features(weight)}, out, groups.offsets.device());
  kernels::grouped_gemm({.a = input, .b = weight.weight(), .offsets = groups.cuts(), .rows = groups.source, .c = y},
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
                               const Numerics& numerics, const Tensor& source)
    : groups_(groups), weight_(weight), numerics_(numerics) {
  if (weight.form() == WeightForm::kFp8Block) {
    const AllocateAs workspace(MemoryCategory::kWorkspace);
    const bool by_tiles = weight.wgrad_tiles().has_value();
    if (source.is_defined() || by_tiles) {
      // Each row once, however many experts read it; and columns or tiles when they are asked for.
      source_ = source;
      if (!by_tiles) dy_ = dy;
      rows_ = quantize_rows(dy, numerics.stats(&Fp8Counts::grad_output));
      return;
    }
    rows_ = empty_rows(dy.rows(), dy.cols(), dy.device());
    columns_ = empty_columns(dy.cols(), groups);
    kernels::quantize_columns({.x = dy,
                               .offsets = groups.offsets,
                               .block_offsets = groups.block_offsets,
                               .codes = columns_.codes,
                               .scale = columns_.scale,
                               .stats = numerics.stats(&Fp8Counts::wgrad_grad),
                               .row_codes = rows_.codes,
                               .row_scale = rows_.scale,
                               .row_stats = numerics.stats(&Fp8Counts::grad_output)},
                              dy.stream());
    return;
  }
  dy_ = dy;
  if (source.is_defined()) {
    dy_ = empty({groups.num_rows, dy.cols()}, dy.dtype(), MemoryCategory::kWorkspace, dy.device());
    kernels::gather_rows({.x = dy, .source = source, .y = dy_, .num_rows = groups.count()}, dy.stream());
  }
  // Plain products want one dtype: the float32 gradient of the router's logits is rounded to that of the gate.
  if (dy.dtype() != weight.weight().dtype()) {
    const Tensor rounded = empty(dy_.shape(), weight.weight().dtype(), MemoryCategory::kWorkspace, dy.device());
    kernels::cast({.x = dy_, .y = rounded}, dy.stream());
    dy_ = rounded;
  }
}

OutputGradient::OutputGradient(Fp8Rows rows, Fp8Rows columns, const RowGroups& groups, const Parameter& weight,
                               const Numerics& numerics)
    : rows_(std::move(rows)), columns_(std::move(columns)), groups_(groups), weight_(weight), numerics_(numerics) {}

Tensor OutputGradient::dgrad() const {
  Tensor dx = empty({groups_.num_rows, in_features(weight_)}, numerics_.activation_dtype(), groups_.offsets.device());
  if (weight_.form() == WeightForm::kFp8Block) {
    kernels::fp8_grouped_gemm({.a = rows_.codes,
                               .a_scale = rows_.scale,
                               .b = weight_.fp8().codes,
                               .b_scale = weight_.fp8().scale,
                               .offsets = groups_.cuts(),
                               .rows = source_,
                               .c = dx,
                               .b_is_kn = true,
                               .b_transposed = weight_.transposed_codes(),
                               .emulation = numerics_.emulation},
                              dx.stream());
  } else {
    kernels::grouped_gemm(
        {.a = dy_, .b = weight_.weight(), .offsets = groups_.cuts(), .rows = {}, .c = dx, .b_is_kn = true},
        dx.stream());
  }
  return dx;
}

void OutputGradient::wgrad(SavedInput& x, Parameter& weight) const {
  if (weight.wgrad_tiles()) {
    wgrad_tiles(requantize_tiles(x.quantized(), groups_, groups_.source, weight.wgrad_tiles()->input), weight);
    return;
  }
  if (weight.form() == WeightForm::kFp8Block) {
    wgrad_columns(requantize_columns(x.quantized(), groups_, numerics_.stats(&Fp8Counts::wgrad_activation)), weight);
    return;
  }
  const Parameter::GradTarget target = weight.grad_target();
  kernels::grouped_wgrad({.dy = dy_,
                          .x = x.values(),
                          .offsets = groups_.cuts(),
                          .rows = groups_.source,
                          .dw = target.grad,
                          .accumulate = target.accumulate},
                         dy_.stream());
}

void OutputGradient::wgrad_values(const Tensor& x, Parameter& weight) const {
  const Parameter::GradTarget target = weight.grad_target();
  kernels::grouped_wgrad(
      {.dy = dy_, .x = x, .offsets = groups_.cuts(), .rows = {}, .dw = target.grad, .accumulate = target.accumulate},
      dy_.stream());
}

Fp8Rows OutputGradient::gathered_columns() const {
  Fp8Rows columns = empty_columns(dy_.cols(), groups_);
  kernels::quantize_columns({.x = dy_,
                             .rows = source_,
                             .offsets = groups_.offsets,
                             .block_offsets = groups_.block_offsets,
                             .codes = columns.codes,
                             .scale = columns.scale,
                             .stats = numerics_.stats(&Fp8Counts::wgrad_grad)},
                            dy_.stream());
  return columns;
}

void OutputGradient::wgrad_columns(const Fp8Rows& columns_of_x, Parameter& weight) const {
  multiply(source_.is_defined() ? gathered_columns() : columns_, columns_of_x, /*by_tiles=*/false, weight);
}

void OutputGradient::wgrad_rows(Fp8Rows rows_of_x, Parameter& weight) const {
  const Fp8Rows tiles = requantize_tiles(std::exchange(rows_of_x, {}), groups_, Tensor(), weight.wgrad_tiles()->input);
  wgrad_tiles(tiles, weight);
}

void OutputGradient::wgrad_tiles(const Fp8Rows& tiles_of_x, Parameter& weight) const {
  multiply(requantize_tiles(rows_, groups_, source_, weight.wgrad_tiles()->grad), tiles_of_x, /*by_tiles=*/true,
           weight);
}

void OutputGradient::multiply(const Fp8Rows& dy, const Fp8Rows& x, bool by_tiles, Parameter& weight) const {
  const Parameter::GradTarget target = weight.grad_target();
  kernels::fp8_grouped_wgrad({.dy = dy.codes,
                              .dy_scale = dy.scale,
                              .x = x.codes,
                              .x_scale = x.scale,
                              .offsets = groups_.offsets,
                              .block_offsets = groups_.block_offsets,
                              .dw = target.grad,
                              .accumulate = target.accumulate,
                              .by_tiles = by_tiles,
                              .num_rows = groups_.num_rows,
                              .emulation = numerics_.emulation},
                             dy.codes.stream());
}

}  // namespace octet
