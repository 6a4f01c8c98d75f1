// A weight of the model: its float32 master, its float32 gradient, and the form that the forward pass reads.
#pragma once

#include <string>
#include <vector>

#include "core/tensor/tensor.h"
#include "kernels/quantize.h"

namespace octet {

// The form in which products read a weight.
enum class WeightForm {
  kFloat32,   // the master itself
  kBFloat16,  // the master, rounded
  kFp8Block,  // the master, rounded to bfloat16 and then to E4M3 in 128x128 tiles: what is trained is what a bfloat16
              // export of the weights computes
};

// One tensor on disk: rows first_row .. first_row + rows - 1 of the parameter seen as [rows, cols]. Experts, and the
// projections that are fused in memory, each have a name of their own.
struct WeightPiece {
  std::string name;
  int64_t first_row = 0, rows = 0;
};

class Parameter {
 public:
  // pieces must cover the rows in order. A parameter of one piece may leave them out: it is then called `name` on disk.
  Parameter(std::string name, Shape shape, WeightForm form, bool decays, std::vector<WeightPiece> pieces = {});

  const std::string& name() const { return name_; }
  const Shape& shape() const { return master_.shape(); }  // [..., N, K]; [D] for a norm
  WeightForm form() const { return form_; }
  bool decays() const { return decays_; }  // takes weight decay: matrices do, norms do not
  const std::vector<WeightPiece>& pieces() const { return pieces_; }
  // On disk a piece of a vector is a vector.
  Shape piece_shape(const WeightPiece& piece) const;

  const Tensor& master() const { return master_; }  // float32
  // float32; made at the first use, and 0 then and after clear_grad(). A model that only infers has none.
  const Tensor& grad();
  // For the product that makes the gradient of a whole matrix: where it goes, and whether to add to what is there. The
  // first of a step need not: zeros are neither written nor read.
  struct GradTarget {
    Tensor grad;
    bool accumulate;
  };
  GradTarget grad_target();
  void clear_grad() { grad_is_clear_ = true; }

  // The weight for float32 and bfloat16 products.
  const Tensor& weight() const;
  // The weight for FP8 products: [G, N, K] and [G, ceil(N/128), ceil(K/128)].
  struct Fp8 {
    Tensor codes, scale;
  };
  const Fp8& fp8() const;

  // Makes the forms above from the master; call it when the master was filled. The optimizer keeps them up to date
  // itself, in the pass that changes the master.
  void refresh();
  bool is_refreshed() const { return weight_.is_defined() || fp8_.codes.is_defined(); }

 private:
  std::string name_;
  WeightForm form_;
  bool decays_;
  std::vector<WeightPiece> pieces_;
  Tensor master_, grad_, weight_;
  bool grad_is_clear_ = true;  // its numbers are old, and stand for 0
  Fp8 fp8_;
};

}  // namespace octet
