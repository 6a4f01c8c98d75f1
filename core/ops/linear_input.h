// The input of linear layers: quantised once for all that read it, and kept for the backward pass in the smallest form.
#pragma once

#include <functional>
#include <memory>

#include "core/ops/numerics.h"
#include "core/tensor/tensor.h"

namespace octet {

// Rows in E4M3 with a power-of-two scale for each 128 columns: the canonical FP8 form (kernels/quantize.h).
struct Fp8Rows {
  Tensor codes;  // [R, C] float8_e4m3
  Tensor scale;  // [R, ceil(C/128)] float32
};
Fp8Rows empty_rows(int64_t rows, int64_t columns, Device device);  // to be filled
Fp8Rows quantize_rows(const Tensor& x, kernels::QuantizeStats* stats);

// What a backward pass needs of a linear input: its values or its codes, kept or made again. Several closures share
// one, and it is freed with the last of them.
class SavedInput {
 public:
  const Tensor& values();      // [R, C] in the activation dtype
  const Fp8Rows& quantized();  // the same codes as in the forward pass

 private:
  friend class LinearInput;
  bool is_made_again() const { return bool(values_again_); }

  Tensor values_;
  Fp8Rows quantized_;
  std::function<Tensor()> values_again_;
  std::function<Fp8Rows()> rows_again_;
};

class LinearInput {
 public:
  // x: [R, C] in the activation dtype. again, where given, makes the bits of x anew: nothing is then kept.
  LinearInput(const Tensor& x, const Numerics& numerics, std::function<Tensor()> again = {});
  // Rows that came in FP8 from elsewhere or from the kernel that made them; values: where somebody reads those too. x:
  // the place on the tape. The last two, where given, make the bits of both anew: nothing is then kept.
  LinearInput(const Tensor& x, Fp8Rows rows, const Numerics& numerics, const Tensor& values = {},
              std::function<Tensor()> values_again = {}, std::function<Fp8Rows()> rows_again = {});
  // The same numbers at another place of the tape (a dispatch: core/nn/dispatcher.h).
  LinearInput at(const Tensor& place) const;
  // The same numbers for products of another recipe of the same activation dtype.
  LinearInput as(Recipe recipe) const;

  const Tensor& x() const { return x_; }  // its place on the tape; may have no data
  const Tensor& values() const { return values_; }
  // In the FP8 recipe: the codes. Quantised at the first call, and for all copies of this input.
  const Fp8Rows& quantized() const;
  const Numerics& numerics() const { return numerics_; }

  // Called when an op is recorded: what its closure will ask for stays alive.
  std::shared_ptr<SavedInput> keep_values() const;
  std::shared_ptr<SavedInput> keep_quantized() const;

 private:
  Tensor x_, values_;
  Numerics numerics_;
  std::shared_ptr<Fp8Rows> quantized_;
  std::shared_ptr<SavedInput> saved_;
};

}  // namespace octet
