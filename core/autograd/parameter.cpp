#include "core/autograd/parameter.h"

#include <cstring>
#include <utility>

#include "kernels/elementwise.h"

namespace octet {

Parameter::Parameter(std::string name, Shape shape, WeightForm form, bool decays, std::vector<WeightPiece> pieces)
    : name_(std::move(name)),
      form_(form),
      decays_(decays),
      pieces_(std::move(pieces)),
      master_(empty(shape, DType::kFloat32, MemoryCategory::kWeights)) {
  const int64_t rows = shape.rank() == 1 ? 1 : shape.rows();
  if (pieces_.empty()) pieces_.push_back({name_, 0, rows});
  int64_t next = 0;
  for (const WeightPiece& piece : pieces_) {
    require(piece.first_row == next, "Parameter {}: piece {} begins at row {}; wanted {}", name_, piece.name,
            piece.first_row, next);
    next += piece.rows;
  }
  require(next == rows, "Parameter {}: pieces cover {} rows of {}", name_, next, rows);
}

Shape Parameter::piece_shape(const WeightPiece& piece) const {
  return shape().rank() == 1 ? shape() : Shape{piece.rows, shape().cols()};
}

const Tensor& Parameter::grad() {
  const GradTarget target = grad_target();
  if (!target.accumulate) std::memset(grad_.view().raw(), 0, size_t(grad_.num_bytes()));
  return grad_;
}

Parameter::GradTarget Parameter::grad_target() {
  if (!grad_.is_defined()) grad_ = empty(shape(), DType::kFloat32, MemoryCategory::kGradients);
  return {grad_, !std::exchange(grad_is_clear_, false)};
}

const Tensor& Parameter::weight() const {
  require(weight_.is_defined(), "Parameter {}: no plain weight; it is in FP8, or refresh() never ran", name_);
  return weight_;
}

const Parameter::Fp8& Parameter::fp8() const {
  require(fp8_.codes.is_defined(), "Parameter {}: no FP8 weight; refresh() never ran, or its form is another", name_);
  return fp8_;
}

void Parameter::refresh() {
  Stream& stream = master_.stream();
  if (form_ == WeightForm::kFloat32) {
    weight_ = master_;
    return;
  }
  if (form_ == WeightForm::kBFloat16) {
    if (!weight_.is_defined()) weight_ = empty(shape(), DType::kBFloat16, MemoryCategory::kWeights);
    kernels::cast({.x = master_, .y = weight_}, stream);
    return;
  }
  const int64_t N = shape()[-2], K = shape()[-1], G = shape().rank() == 3 ? shape()[0] : 1;
  if (!fp8_.codes.is_defined()) {
    const int64_t n_blocks = (N + 127) / 128, k_blocks = (K + 127) / 128;
    const AllocateAs weights(MemoryCategory::kWeights);
    fp8_ = {.codes = empty({G, N, K}, DType::kFloat8E4M3), .scale = empty({G, n_blocks, k_blocks}, DType::kFloat32)};
  }
  // One expert at a time, so that the bfloat16 copy is one expert large.
  const Tensor master = master_.reshape({G, N, K});
  const Tensor rounded = empty({1, N, K}, DType::kBFloat16, MemoryCategory::kWorkspace);
  for (int64_t g = 0; g < G; ++g) {
    kernels::cast({.x = master.slice_rows(g, 1), .y = rounded}, stream);
    kernels::quantize_blocks(
        {.x = rounded, .codes = fp8_.codes.slice_rows(g, 1), .scale = fp8_.scale.slice_rows(g, 1), .stats = nullptr},
        stream);
  }
}

}  // namespace octet
