#include "core/ops/swiglu_ffn.h"

#include <utility>

#include "core/autograd/tape.h"
#include "kernels/fp8_swiglu_gemm.h"

namespace octet {
namespace {

Tensor swiglu(const Tensor& h, const RowGroups& groups, const Tensor& weights, float limit) {
  Tensor y = empty({h.rows(), h.cols() / 2}, h.dtype(), h.device());
  kernels::swiglu_forward({.h = h, .weights = weights, .limit = limit, .y = y, .num_rows = groups.count()}, h.stream());
  return y;
}

bool are_clamps_counted(const Numerics& numerics, float limit) { return limit > 0.0f && numerics.health != nullptr; }
void count_clamped(const Tensor& h, const RowGroups& groups, const Numerics& numerics, float limit) {
  if (!are_clamps_counted(numerics, limit)) return;
  kernels::count_clamped({.h = h, .limit = limit, .counts = &numerics.health->swiglu, .num_rows = groups.count()},
                         h.stream());
}

// To be filled.
Tensor gradient_of(const Tensor& weights) {
  return weights.is_defined() ? empty(weights.shape(), DType::kFloat32, weights.device()) : Tensor();
}

Wanted& wanted_in_gemm() {
  static Wanted wanted = wanted_of("OCTET_SWIGLU_IN_GEMM");
  return wanted;
}
bool makes_codes_in_gemm(const SwigluOptions& options) {
  return swiglu_in_gemm() == Wanted::kAuto ? options.in_gemm : swiglu_in_gemm() == Wanted::kOn;
}

// The FP8 recipe, where the activation and its gradient exist in cache only: each kernel reads the operand of one
// product and writes those of the next.
Tensor ffn_in_fp8(const LinearInput& input, const RowGroups& groups, const RowGroups& in_order, const Tensor& weights,
                  const SwigluOptions& options, Parameter& w13, Parameter& w2) {
  const Numerics numerics = input.numerics();
  const float limit = options.limit;
  const int64_t R = groups.num_rows, F = w2.shape()[-1];
  const Device device = groups.offsets.device();
  const bool has_h = !makes_codes_in_gemm(options) || are_clamps_counted(numerics, limit);
  Tensor h = has_h ? fprop(input, groups, w13, numerics.activation_dtype()) : Tensor();  // [R, 2F]
  if (has_h) count_clamped(h, groups, numerics, limit);
  Fp8Rows kept = is_recording() ? empty_rows(R, 2 * F, device) : Fp8Rows();
  Tensor out;  // [R, D]
  {
    const Fp8Rows y = [&] {
      const AllocateAs workspace(MemoryCategory::kWorkspace);
      return empty_rows(R, F, device);
    }();
    const kernels::Fp8SwigluGemm both{.a = input.quantized().codes,
                                      .a_scale = input.quantized().scale,
                                      .b = w13.fp8().codes,
                                      .b_scale = w13.fp8().scale,
                                      .offsets = groups.cuts(),
                                      .rows = groups.source,
                                      .emulation = numerics.emulation,
                                      .weights = weights,
                                      .limit = limit,
                                      .h_codes = kept.codes,
                                      .h_scale = kept.scale,
                                      .y_codes = y.codes,
                                      .y_scale = y.scale,
                                      .stats = numerics.stats(&Fp8Counts::activation),
                                      .num_rows = groups.count()};
    if (has_h) {
      kernels::swiglu_forward_fp8(kernels::activation_of(both, h), y.codes.stream());
      h = Tensor();
    } else {
      kernels::fp8_swiglu_gemm(both, y.codes.stream());
    }
    out = fprop_fp8(y, in_order, w2, numerics.emulation, numerics.activation_dtype());
  }
  if (!is_recording()) return out;
  return record("swiglu_ffn", out, {input.x(), weights},
                [saved = input.keep_quantized(), kept, groups, in_order, weights = weights.detach(), limit, &w13, &w2,
                 numerics](const Tensor& dout) mutable -> Gradients {
                  Tensor dweights = gradient_of(weights);
                  const AllocateAs workspace(MemoryCategory::kWorkspace);
                  const int64_t rows = kept.codes.rows(), width = kept.codes.cols();
                  Fp8Rows dh_rows = empty_rows(rows, width, dout.device()), dh_columns;
                  if (!w13.wgrad_tiles()) dh_columns = empty_columns(width, in_order);
                  {
                    const OutputGradient out_gradient(dout, in_order, w2, numerics, groups.source);
                    const bool by_tiles = w2.wgrad_tiles().has_value();
                    Fp8Rows y_rows, y_columns;
                    if (by_tiles) {
                      y_rows = empty_rows(rows, width / 2, dout.device());
                    } else {
                      y_columns = empty_columns(width / 2, in_order);
                    }
                    {
                      const Tensor dy = out_gradient.dgrad();  // [R, F]
                      kernels::swiglu_backward_fp8(
                          {.dy = dy,
                           .h_codes = kept.codes,
                           .h_scale = kept.scale,
                           .weights = weights,
                           .limit = limit,
                           .offsets = in_order.offsets,
                           .block_offsets = in_order.block_offsets,
                           .y_codes = y_columns.codes,
                           .y_scale = y_columns.scale,
                           .y_row_codes = y_rows.codes,
                           .y_row_scale = y_rows.scale,
                           .dh_codes = dh_rows.codes,
                           .dh_scale = dh_rows.scale,
                           .dh_column_codes = dh_columns.codes,
                           .dh_column_scale = dh_columns.scale,
                           .dweights = dweights,
                           .y_stats = numerics.stats(by_tiles ? &Fp8Counts::activation : &Fp8Counts::wgrad_activation),
                           .dh_stats = numerics.stats(&Fp8Counts::grad_output),
                           .dh_column_stats = numerics.stats(&Fp8Counts::wgrad_grad)},
                          dy.stream());
                    }
                    kept = Fp8Rows();
                    if (by_tiles) {
                      out_gradient.wgrad_rows(std::move(y_rows), w2);
                    } else {
                      out_gradient.wgrad_columns(y_columns, w2);
                    }
                  }
                  OutputGradient(dh_rows, std::exchange(dh_columns, {}), groups, w13, numerics).wgrad(*saved, w13);
                  return {OutputGradient(std::move(dh_rows), {}, groups, w13, numerics).dgrad(), dweights};
                });
}

}  // namespace

Wanted swiglu_in_gemm() { return wanted_in_gemm(); }
void set_swiglu_in_gemm(Wanted wanted) { wanted_in_gemm() = wanted; }

Tensor swiglu_ffn(const LinearInput& input, const RowGroups& groups, const Tensor& weights, Parameter& w13,
                  Parameter& w2, const SwigluOptions& options) {
  const Numerics numerics = input.numerics();
  const DType dtype = numerics.activation_dtype();
  require(w13.shape()[-1] == input.x().cols() && w13.shape()[-2] == 2 * w2.shape()[-1] &&
              w2.shape()[-2] == input.x().cols(),
          "swiglu_ffn: {} is {} and {} is {}; wanted [.., 2F, {}] and [.., {}, F]", w13.name(), w13.shape(), w2.name(),
          w2.shape(), input.x().cols(), input.x().cols());
  RowGroups in_order = groups;  // rows of y are in the order of the groups already
  in_order.source = Tensor();
  if (w13.form() == WeightForm::kFp8Block) return ffn_in_fp8(input, groups, in_order, weights, options, w13, w2);
  const float limit = options.limit;
  Tensor h = fprop_plain(input.values(), groups, w13, dtype);  // [R, 2F]
  count_clamped(h, groups, numerics, limit);
  Tensor y = swiglu(h, groups, weights, limit);      // [R, F]
  Tensor out = fprop_plain(y, in_order, w2, dtype);  // [R, D]
  if (!is_recording()) return out;
  if (options.recompute) y = Tensor();
  return record("swiglu_ffn", out, {input.x(), weights},
                [saved = input.keep_values(), h, y, groups, in_order, weights = weights.detach(), limit, &w13, &w2,
                 numerics](const Tensor& dout) -> Gradients {
                  Tensor dweights = gradient_of(weights);
                  const AllocateAs workspace(MemoryCategory::kWorkspace);
                  Tensor dh = empty_like(h);  // [R, 2F]
                  {
                    const OutputGradient out_gradient(dout, in_order, w2, numerics, groups.source);
                    out_gradient.wgrad_values(y.is_defined() ? y : swiglu(h, groups, weights, limit), w2);
                    const Tensor dy = out_gradient.dgrad();  // [R, F]
                    kernels::swiglu_backward({.dy = dy,
                                              .h = h,
                                              .weights = weights,
                                              .limit = limit,
                                              .dh = dh,
                                              .dweights = dweights,
                                              .num_rows = groups.count()},
                                             dh.stream());
                  }
                  const OutputGradient h_gradient(dh, groups, w13, numerics);
                  h_gradient.wgrad(*saved, w13);
                  return {h_gradient.dgrad(), dweights};
                });
}

}  // namespace octet
