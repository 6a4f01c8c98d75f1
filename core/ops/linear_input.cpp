#include "core/ops/linear_input.h"

namespace octet {

Fp8Rows empty_rows(int64_t rows, int64_t columns, Device device) {
  return {.codes = empty({rows, columns}, DType::kFloat8E4M3, device),
          .scale = empty({rows, (columns + 127) / 128}, DType::kFloat32, device)};
}

Fp8Rows quantize_rows(const Tensor& x, kernels::QuantizeStats* stats) {
  Fp8Rows rows = empty_rows(x.rows(), x.cols(), x.device());
  kernels::quantize_rows({.x = x, .codes = rows.codes, .scale = rows.scale, .stats = stats}, x.stream());
  return rows;
}

const Tensor& SavedInput::values() {
  if (!values_.is_defined()) values_ = values_again_();
  return values_;
}

const Fp8Rows& SavedInput::quantized() {
  if (!quantized_.codes.is_defined()) quantized_ = rows_again_ ? rows_again_() : quantize_rows(values(), nullptr);
  return quantized_;
}

LinearInput::LinearInput(const Tensor& x, const Numerics& numerics, std::function<Tensor()> again)
    : x_(x),
      values_(x.detach()),
      numerics_(numerics),
      quantized_(std::make_shared<Fp8Rows>()),
      saved_(std::make_shared<SavedInput>()) {
  saved_->values_again_ = std::move(again);
}

LinearInput::LinearInput(const Tensor& x, Fp8Rows rows, const Numerics& numerics, const Tensor& values,
                         std::function<Tensor()> values_again, std::function<Fp8Rows()> rows_again)
    : x_(x),
      values_(values.detach()),
      numerics_(numerics),
      quantized_(std::make_shared<Fp8Rows>(std::move(rows))),
      saved_(std::make_shared<SavedInput>()) {
  saved_->values_again_ = std::move(values_again);
  saved_->rows_again_ = std::move(rows_again);
}

LinearInput LinearInput::at(const Tensor& place) const {
  LinearInput moved = *this;
  moved.x_ = place;
  return moved;
}

LinearInput LinearInput::as(Recipe recipe) const {
  LinearInput other = *this;
  other.numerics_ = numerics_.in(recipe);
  return other;
}

const Fp8Rows& LinearInput::quantized() const {
  if (!quantized_->codes.is_defined()) *quantized_ = quantize_rows(values_, numerics_.stats(&Fp8Counts::activation));
  return *quantized_;
}

std::shared_ptr<SavedInput> LinearInput::keep_values() const {
  if (!saved_->is_made_again()) saved_->values_ = values_;
  return saved_;
}

std::shared_ptr<SavedInput> LinearInput::keep_quantized() const {
  if (!saved_->is_made_again()) saved_->quantized_ = quantized();
  return saved_;
}

}  // namespace octet
