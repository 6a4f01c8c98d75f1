#include "core/autograd/parameter.h"

#include <algorithm>
#include <utility>

#include "kernels/elementwise.h"
#include "kernels/transpose_codes.h"

namespace octet {

Parameter::Parameter(std::string name, Shape shape, WeightForm form, bool decays, Device device,
                     std::vector<WeightPiece> pieces, AxisCut cut)
    : name_(std::move(name)),
      shape_(shape),
      form_(form),
      decays_(decays),
      device_(device),
      pieces_(std::move(pieces)),
      cut_(cut) {
  require(shape.rank() >= 1, "Parameter {}: a scalar; wanted at least one axis", name_);
  if (cut_.total == 0) cut_ = {.first = 0, .total = shape[0]};
  own_ = {0, num_rows()};
  if (pieces_.empty()) pieces_.push_back({name_, 0, num_rows()});
  int64_t next = 0;
  for (const WeightPiece& piece : pieces_) {
    require(piece.first_row == next, "Parameter {}: piece {} begins at row {}; wanted {}", name_, piece.name,
            piece.first_row, next);
    next += piece.rows;
  }
  require(next == num_rows(), "Parameter {}: pieces cover {} rows of {}", name_, next, num_rows());
}

Shape Parameter::piece_shape(const WeightPiece& piece) const {
  return shape().rank() == 1 ? shape() : Shape{piece.rows, shape().cols()};
}

RowRange Parameter::slab(int64_t index) const {
  const int64_t N = rows_of_matrix(), first = index % slabs_of_matrix() * kSlabRows;
  return {index / slabs_of_matrix() * N + first, std::min(kSlabRows, N - first)};
}

void Parameter::place(RowRange own, Storage storage) {
  require(!master_.is_defined() && !grad_.is_defined() && !is_refreshed_,
          "Parameter {}: place() after its tensors were made", name_);
  require(0 <= own.first && 0 <= own.rows && own.end() <= num_rows(), "Parameter {}: own rows {} to {} of {}", name_,
          own.first, own.end(), num_rows());
  own_ = own;
  grad_ = std::move(storage.grad);
  weight_ = std::move(storage.weight);
  fp8_ = {.codes = std::move(storage.codes), .scale = std::move(storage.scale)};
}

Shape Parameter::own_shape() const {
  if (owns_all()) return shape_;
  if (shape_.rank() == 1) return {0};
  return {own_.rows, shape_.cols()};
}

Tensor Parameter::own_rows_of(const Tensor& whole) const {
  if (owns_all()) return whole;
  if (shape_.rank() == 1) return whole.slice_rows(0, 0);
  return whole.reshape({num_rows(), shape_.cols()}).slice_rows(own_.first, own_.rows);
}

const Tensor& Parameter::master() const {
  if (master_.is_defined()) return master_;
  if (form_ == WeightForm::kFloat32 && weight_.is_defined()) {
    master_ = own_rows_of(weight_);
  } else {
    require(form_ != WeightForm::kFloat32 || owns_all(), "Parameter {}: placed without memory for its weight", name_);
    master_ = empty(own_shape(), DType::kFloat32, MemoryCategory::kWeights, device_);
  }
  return master_;
}

const Tensor& Parameter::grad() {
  const GradTarget target = grad_target();
  if (!target.accumulate) fill_zero(grad_);
  return grad_;
}

Parameter::GradTarget Parameter::grad_target() {
  if (!grad_.is_defined()) grad_ = empty(shape(), DType::kFloat32, MemoryCategory::kGradients, device_);
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

void Parameter::keep_transposed(bool yes) {
  keeps_transposed_ = yes;
  transposed_codes_ = Tensor();
}

Tensor Parameter::transposed_codes() const {
  if (keeps_transposed_ && !transposed_codes_.is_defined()) {
    const Tensor& codes = fp8().codes;  // [G, N, K]
    transposed_codes_ =
        empty({codes.size(0), codes.size(2), codes.size(1)}, codes.dtype(), MemoryCategory::kWeights, device_);
    kernels::transpose_codes({.codes = codes, .out = transposed_codes_}, codes.stream());
  }
  return transposed_codes_;
}

Parameter::Fp8 Parameter::fp8_rows(RowRange rows) const {
  const int64_t N = shape_[-2], K = shape_[-1];
  if (rows.first % N == 0 && rows.rows % N == 0) {
    return {fp8().codes.slice_rows(rows.first / N, rows.rows / N),
            fp8().scale.slice_rows(rows.first / N, rows.rows / N)};
  }
  const int64_t g = rows.first / N, first = rows.first % N;
  require(first % kSlabRows == 0 && first + rows.rows <= N, "Parameter {}: rows {} to {} are no slabs of one matrix",
          name_, rows.first, rows.end());
  const Tensor codes = fp8().codes.slice_rows(g, 1), scale = fp8().scale.slice_rows(g, 1);
  return {codes.reshape({N, K}).slice_rows(first, rows.rows),
          scale.reshape({scale.size(1), scale.size(2)})
              .slice_rows(first / kSlabRows, (rows.rows + kSlabRows - 1) / kSlabRows)};
}

std::vector<RowRange> Parameter::split_at_matrices(RowRange rows) const {
  const int64_t N = rows_of_matrix();
  const int64_t whole_begin = (rows.first + N - 1) / N * N, whole_end = rows.end() / N * N;
  if (whole_begin > whole_end) return {rows};  // inside one matrix
  std::vector<RowRange> ranges;
  const auto add = [&ranges](int64_t begin, int64_t end) {
    if (end > begin) ranges.push_back({begin, end - begin});
  };
  add(rows.first, whole_begin);
  add(whole_begin, whole_end);
  add(whole_end, rows.end());
  return ranges;
}

void Parameter::make_weight() {
  const AllocateAs weights(MemoryCategory::kWeights);
  if (form_ == WeightForm::kFloat32) {
    if (!weight_.is_defined()) weight_ = master();
  } else if (form_ == WeightForm::kBFloat16) {
    if (!weight_.is_defined()) weight_ = empty(shape(), DType::kBFloat16, device_);
  } else if (!fp8_.codes.is_defined()) {
    const int64_t N = shape()[-2], K = shape()[-1], G = num_matrices();
    fp8_ = {.codes = empty({G, N, K}, DType::kFloat8E4M3, device_),
            .scale = empty({G, slabs_of_matrix(), (K + 127) / 128}, DType::kFloat32, device_)};
  }
}

void Parameter::refresh() {
  make_weight();
  is_refreshed_ = true;
  Stream& stream = master().stream();
  if (form_ == WeightForm::kBFloat16) kernels::cast({.x = master(), .y = own_rows_of(weight_)}, stream);
  if (form_ != WeightForm::kFp8Block) return;
  // One expert at a time, so that the bfloat16 copy is one expert large.
  const int64_t N = shape()[-2], K = shape()[-1];
  const Tensor rounded = empty({std::min(N, own_.rows), K}, DType::kBFloat16, MemoryCategory::kWorkspace, device_);
  const Tensor rows = master().reshape({own_.rows, K});
  for (int64_t first = own_.first; first < own_.end();) {
    const int64_t count = std::min(N - first % N, own_.end() - first);
    const Fp8 fp8 = fp8_rows({first, count});
    const Tensor part = rounded.slice_rows(0, count);
    kernels::cast({.x = rows.slice_rows(first - own_.first, count), .y = part}, stream);
    kernels::quantize_blocks(
        {.x = part.reshape(fp8.codes.shape()), .codes = fp8.codes, .scale = fp8.scale, .stats = nullptr}, stream);
    first += count;
  }
}

}  // namespace octet
