#include "core/ops/linear.h"

#include "core/autograd/tape.h"

namespace octet {

Tensor linear(const LinearInput& input, Parameter& weight, DType out) {
  require(weight.shape().rank() == 2 && weight.shape()[1] == input.x().cols(),
          "linear: weight {} is {}; wanted [N, {}], the last axis of the input", weight.name(), weight.shape(),
          input.x().cols());
  const RowGroups groups = RowGroups::dense(input.x().rows(), weight.device());
  Tensor y = fprop(input, groups, weight, out);  // [T, N]
  if (!is_recording()) return y;
  const auto saved = weight.form() == WeightForm::kFp8Block ? input.keep_quantized() : input.keep_values();
  return record("linear", y, {input.x()},
                [saved, groups, &weight, numerics = input.numerics()](const Tensor& dy) -> Gradients {
                  const OutputGradient gradient(dy, groups, weight, numerics);
                  gradient.wgrad(*saved, weight);
                  return {gradient.dgrad()};
                });
}

}  // namespace octet
