// A weight of the model: its float32 master, its float32 gradient, and the form that the forward pass reads.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/tensor/tensor.h"
#include "kernels/fp8_gemm.h"
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

// Rows of a parameter seen as [rows, cols]; a vector is one row.
struct RowRange {
  int64_t first = 0, rows = 0;
  int64_t end() const { return first + rows; }
  bool operator==(const RowRange&) const = default;
};

// A parameter is divided in slabs of 128 rows, from the start of each of its matrices; a vector is one slab. A tile of
// an FP8 weight lies in one slab, so that a slab is what ranks can share the update of a parameter by.
inline constexpr int64_t kSlabRows = 128;

// Where the model's tensor is cut along its first axis over ranks: a parameter is its slices first .. of `total`.
struct AxisCut {
  int64_t first = 0, total = 0;
};

class Parameter {
 public:
  // pieces must cover the rows in order. A parameter of one piece may leave them out: it is then called `name` on disk.
  // cut: all of the tensor where it is left out.
  Parameter(std::string name, Shape shape, WeightForm form, bool decays, Device device = {},
            std::vector<WeightPiece> pieces = {}, AxisCut cut = {});

  const std::string& name() const { return name_; }
  const Shape& shape() const { return shape_; }  // [..., N, K]; [D] for a norm
  WeightForm form() const { return form_; }
  Device device() const { return device_; }
  bool decays() const { return decays_; }  // takes weight decay: matrices do, norms do not
  const std::vector<WeightPiece>& pieces() const { return pieces_; }
  // On disk a piece of a vector is a vector.
  Shape piece_shape(const WeightPiece& piece) const;
  const AxisCut& cut() const { return cut_; }
  bool is_cut() const { return cut_.total != shape_[0]; }

  int64_t num_rows() const { return shape_.rank() == 1 ? 1 : shape_.rows(); }
  int64_t rows_of_matrix() const { return shape_.rank() == 1 ? 1 : shape_[-2]; }  // N
  int64_t num_matrices() const { return shape_.rank() == 3 ? shape_[0] : 1; }     // G
  int64_t slabs_of_matrix() const { return (rows_of_matrix() + kSlabRows - 1) / kSlabRows; }
  int64_t num_slabs() const { return num_matrices() * slabs_of_matrix(); }
  RowRange slab(int64_t index) const;

  // Memory that a run lays out itself, so that many tensors lie in one: as shape(), but for scale. What is not defined
  // is made when it is first needed.
  struct Storage {
    Tensor grad;          // float32
    Tensor weight;        // of the form, where that is float32 or bfloat16
    Tensor codes, scale;  // of the FP8 form: [G, N, K] and [G, ceil(N/128), ceil(K/128)]
  };
  // Before anything is made of the parameter: the rows whose master (and moments) are kept here, whole slabs; and
  // memory. All rows where this is not called.
  void place(RowRange own, Storage storage);
  const RowRange& own() const { return own_; }
  bool owns_all() const { return own_.rows == num_rows(); }
  // The own rows of a tensor of shape(): the whole tensor, or [rows, cols].
  Tensor own_rows_of(const Tensor& whole) const;
  Shape own_shape() const;

  // float32, of own_shape(). Of a form kFloat32 it is those rows of the weight.
  const Tensor& master() const;
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
  // The codes as [G, K, N], as dgrad reads them on this kind of device: kept where it is asked for many times before
  // the weight changes. While they are, the first call makes them, and nobody changes the weight; while they are not,
  // they take no memory and are not defined.
  bool is_read_transposed(DeviceType device, kernels::Emulation emulation) const {
    return form_ == WeightForm::kFp8Block && kernels::reads_b_transposed(device, emulation, shape_[-2]);
  }
  void keep_transposed(bool yes);
  Tensor transposed_codes() const;

  // How the operands of the gradient's FP8 product are made: as tiles (kernels/requantize_tiles.h), whose losses are
  // added to these counts; or as columns, where there are none. core/nn/wgrad_tiles.h decides.
  struct TileCounts {
    kernels::QuantizeStats *grad = nullptr, *input = nullptr;  // of the output's gradient and of the input
  };
  const std::optional<TileCounts>& wgrad_tiles() const { return wgrad_tiles_; }
  void set_wgrad_tiles(const std::optional<TileCounts>& counts) { wgrad_tiles_ = counts; }

  // Makes the own rows of the forms above from the master; call it when the master was filled. The optimizer keeps them
  // up to date itself, in the pass that changes the master.
  void refresh();
  // Rows of the FP8 form, whole matrices or some rows of one matrix: [g, N, K] or [rows, K], and the scale of their
  // slabs.
  Fp8 fp8_rows(RowRange rows) const;
  // `rows` in at most three ranges that fp8_rows takes.
  std::vector<RowRange> split_at_matrices(RowRange rows) const;
  bool is_refreshed() const { return is_refreshed_; }

 private:
  void make_weight();

  std::string name_;
  Shape shape_;
  WeightForm form_;
  bool decays_;
  Device device_;
  std::vector<WeightPiece> pieces_;
  AxisCut cut_;
  RowRange own_;
  mutable Tensor master_;  // made when it is first asked for, since place() comes after the model
  Tensor grad_, weight_;
  bool grad_is_clear_ = true;  // its numbers are old, and stand for 0
  bool is_refreshed_ = false;
  Fp8 fp8_;
  bool keeps_transposed_ = false;
  mutable Tensor transposed_codes_;
  std::optional<TileCounts> wgrad_tiles_;
};

}  // namespace octet
