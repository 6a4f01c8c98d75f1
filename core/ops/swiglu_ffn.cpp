#include "core/ops/swiglu_ffn.h"

#include "core/autograd/tape.h"
#include "kernels/swiglu.h"

namespace octet {
namespace {

Tensor swiglu(const Tensor& h) {
  Tensor y = empty({h.rows(), h.cols() / 2}, h.dtype());
  kernels::swiglu_forward({.h = h, .y = y}, h.stream());
  return y;
}

}  // namespace

Tensor swiglu_ffn(const LinearInput& input, const RowGroups& groups, Parameter& w13, Parameter& w2,
                  bool recompute_swiglu) {
  const Numerics numerics = input.numerics();
  const DType dtype = numerics.activation_dtype();
  require(w13.shape()[-1] == input.x().cols() && w13.shape()[-2] == 2 * w2.shape()[-1] &&
              w2.shape()[-2] == input.x().cols(),
          "swiglu_ffn: {} is {} and {} is {}; wanted [.., 2F, {}] and [.., {}, F]", w13.name(), w13.shape(), w2.name(),
          w2.shape(), input.x().cols(), input.x().cols());
  Tensor h = fprop(input, groups, w13, dtype);  // [R, 2F]
  Tensor y = swiglu(h);                         // [R, F]
  RowGroups in_order = groups;                  // rows of y are in the order of the groups already
  in_order.source = Tensor();
  const bool fp8 = numerics.is_fp8();
  Fp8Rows h_fp8;
  Tensor out;  // [R, D]
  if (fp8) {
    if (is_recording()) {
      h_fp8 = quantize_rows(h, numerics.stats(&Fp8Counts::activation));
      h = Tensor();
    }
    const Fp8Rows y_fp8 = quantize_rows(y, numerics.stats(&Fp8Counts::activation));
    y = Tensor();
    out = fprop_fp8(y_fp8, in_order, w2, numerics.emulation, dtype);
  } else {
    out = fprop_plain(y, in_order, w2, dtype);
    if (recompute_swiglu) y = Tensor();
  }
  if (!is_recording()) return out;
  const auto saved = fp8 ? input.keep_quantized() : input.keep_values();
  return record("swiglu_ffn", out, {input.x()},
                [saved, h, y, h_fp8, groups, in_order, &w13, &w2, numerics](const Tensor& dout) -> Gradients {
                  const AllocateAs workspace(MemoryCategory::kWorkspace);
                  const OutputGradient out_gradient(dout, in_order, w2, numerics);
                  const Tensor h_values = numerics.is_fp8() ? dequantize_rows(h_fp8, numerics.activation_dtype()) : h;
                  out_gradient.wgrad_values(y.is_defined() ? y : swiglu(h_values), w2);
                  const Tensor dy = out_gradient.dgrad();  // [R, F]
                  Tensor dh = empty_like(h_values);        // [R, 2F]
                  kernels::swiglu_backward({.dy = dy, .h = h_values, .dh = dh}, dh.stream());
                  const OutputGradient h_gradient(dh, groups, w13, numerics);
                  h_gradient.wgrad(*saved, w13);
                  return {h_gradient.dgrad()};
                });
}

}  // namespace octet
