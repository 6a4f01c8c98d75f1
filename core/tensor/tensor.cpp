#include "core/tensor/tensor.h"

#include <cstring>

namespace octet {

struct Tensor::Storage {
  Storage(int64_t num_bytes, MemoryCategory of) : memory(allocate(num_bytes, of)), bytes(num_bytes), category(of) {}
  ~Storage() { release(memory, bytes, category); }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  void* memory;
  int64_t bytes;
  MemoryCategory category;
};

Tensor::Tensor(Shape shape, DType dtype, MemoryCategory category)
    : storage_(std::make_shared<Storage>(shape.num_elements() * size_of(dtype), category)),
      shape_(shape),
      row_stride_(shape.cols()),
      dtype_(dtype),
      has_shape_(true) {}

Tensor Tensor::without_data(Shape shape, DType dtype) {
  Tensor x;
  x.shape_ = shape;
  x.row_stride_ = shape.cols();
  x.dtype_ = dtype;
  x.has_shape_ = true;
  return x;
}

View Tensor::view() const {
  if (!is_defined()) return View();
  require(has_data(), "Tensor: this tensor of shape {} has no data", shape_);
  return View(static_cast<char*>(storage_->memory) + offset_bytes_, shape_, dtype_, {}, row_stride_);
}

Tensor Tensor::reshape(Shape shape) const {
  require(shape.num_elements() == num_elements() && is_contiguous(),
          "reshape: {} to {}; wanted as many elements, contiguous", shape_, shape);
  Tensor x = *this;
  x.shape_ = shape;
  x.row_stride_ = shape.cols();
  return x;
}

Tensor Tensor::slice_rows(int64_t begin, int64_t count) const {
  require(shape_.rank() >= 1 && begin >= 0 && count >= 0 && begin + count <= size(0), "slice_rows: [{}, {}) of {}",
          begin, begin + count, shape_);
  Tensor x = *this;
  const int64_t inner = size(0) == 0 ? 0 : rows() / size(0);  // rows of one index of the first axis
  switch (shape_.rank()) {
    case 1:
      x.shape_ = {count};
      x.row_stride_ = count;
      x.offset_bytes_ += begin * size_of(dtype_);
      return x;
    case 2:
      x.shape_ = {count, size(1)};
      break;
    case 3:
      x.shape_ = {count, size(1), size(2)};
      break;
    default:
      x.shape_ = {count, size(1), size(2), size(3)};
  }
  x.offset_bytes_ += begin * inner * row_stride_ * size_of(dtype_);
  return x;
}

Tensor Tensor::slice_columns(int64_t begin, int64_t count) const {
  require(shape_.rank() == 2 && begin >= 0 && count >= 0 && begin + count <= cols(),
          "slice_columns: [{}, {}) of {}; wanted a matrix", begin, begin + count, shape_);
  Tensor x = *this;
  x.shape_ = {size(0), count};
  x.offset_bytes_ += begin * size_of(dtype_);
  return x;
}

Tensor Tensor::detach() const {
  Tensor x = *this;
  x.node_ = nullptr;
  x.output_index_ = 0;
  return x;
}

Tensor empty(Shape shape, DType dtype) { return Tensor(shape, dtype, current_memory_category()); }
Tensor empty(Shape shape, DType dtype, MemoryCategory category) { return Tensor(shape, dtype, category); }
Tensor empty_like(const Tensor& x) { return empty(x.shape(), x.dtype()); }
Tensor zeros(Shape shape, DType dtype) { return zeros(shape, dtype, current_memory_category()); }
Tensor zeros(Shape shape, DType dtype, MemoryCategory category) {
  Tensor x(shape, dtype, category);
  std::memset(x.view().raw(), 0, size_t(x.num_bytes()));
  return x;
}

}  // namespace octet
