// A tensor: shared memory, a shape and, where it came out of a recorded op, its place on the tape. Copying a Tensor
// copies the handle, never the numbers. Rows are contiguous; a slice of columns has a larger row stride
// (core/base/view.h).
#pragma once

#include <memory>
#include <vector>

#include "core/base/stream.h"
#include "core/base/view.h"
#include "core/tensor/allocator.h"

namespace octet {

namespace autograd {
class Node;
}

class Tensor {
 public:
  Tensor() = default;  // no tensor: is_defined() is false
  Tensor(Shape shape, DType dtype, MemoryCategory category, Device device = {});

  bool is_defined() const { return has_shape_; }
  // False for a tensor that stands for rows which are never gathered (core/nn/dispatcher.h): it has a shape and a place
  // on the tape, and no numbers.
  bool has_data() const { return storage_ != nullptr; }
  static Tensor without_data(Shape shape, DType dtype, Device device = {});

  const Shape& shape() const { return shape_; }
  int64_t size(int axis) const { return shape_[axis]; }
  int64_t rows() const { return shape_.rows(); }
  int64_t cols() const { return shape_.cols(); }
  int64_t num_elements() const { return shape_.num_elements(); }
  int64_t num_bytes() const { return num_elements() * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  Stream& stream() const { return default_stream(device_); }
  bool is_contiguous() const { return row_stride_ == cols() || rows() <= 1; }

  // Of the CPU only: what a GPU holds is no address to the host (transfer.h).
  template <class T>
  T* data() const {
    require(device_.is_cpu(), "Tensor: the host asked for the numbers of a tensor of shape {} on {}", shape_, device_);
    return view().data<T>();
  }
  View view() const;
  operator View() const { return view(); }       // NOLINT: kernels take views
  operator ConstView() const { return view(); }  // NOLINT

  // The same memory. reshape wants contiguous rows; slices share the rest of the tensor's life.
  Tensor reshape(Shape shape) const;
  Tensor slice_rows(int64_t begin, int64_t count) const;     // of the first axis
  Tensor slice_columns(int64_t begin, int64_t count) const;  // of the last axis
  Tensor detach() const;                                     // off the tape

  bool requires_grad() const { return node_ != nullptr; }
  const std::shared_ptr<autograd::Node>& node() const { return node_; }
  int output_index() const { return output_index_; }
  void set_node(std::shared_ptr<autograd::Node> node, int output_index) {
    node_ = std::move(node);
    output_index_ = output_index;
  }

 private:
  struct Storage;
  std::shared_ptr<Storage> storage_;
  int64_t offset_bytes_ = 0;
  Shape shape_;
  int64_t row_stride_ = 0;
  DType dtype_ = DType::kFloat32;
  Device device_;
  bool has_shape_ = false;
  std::shared_ptr<autograd::Node> node_;
  int output_index_ = 0;
};

// New tensors, of the current memory category unless one is named.
Tensor empty(Shape shape, DType dtype, Device device = {});
Tensor empty(Shape shape, DType dtype, MemoryCategory category, Device device = {});
Tensor empty_like(const Tensor& x);
Tensor zeros(Shape shape, DType dtype, Device device = {});
Tensor zeros(Shape shape, DType dtype, MemoryCategory category, Device device = {});
// Every byte becomes 0. x: contiguous.
void fill_zero(const Tensor& x);

}  // namespace octet
