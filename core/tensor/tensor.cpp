#include "core/tensor/tensor.h"

#include <cstring>

#include "kernels/device_runtime.h"

namespace octet {

struct Tensor::Storage {
  Storage(int64_t num_bytes, MemoryCategory of, Device on)
      : memory(allocate(num_bytes, of, on)), bytes(num_bytes), category(of), device(on) {}
  ~Storage() { release(memory, bytes, category, device); }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  void* memory;
  int64_t bytes;
  MemoryCategory category;
  Device device;
};

Tensor::Tensor(Shape shape, DType dtype, MemoryCategory category, Device device)
    : storage_(std::make_shared<Storage>(shape.num_elements() * size_of(dtype), category, device)),
      shape_(shape),
      row_stride_(shape.cols()),
      dtype_(dtype),
      device_(device),
      has_shape_(true) {}

Tensor Tensor::without_data(Shape shape, DType dtype, Device device) {
  Tensor x;
  x.shape_ = shape;
  x.row_stride_ = shape.cols();
  x.dtype_ = dtype;
  x.device_ = device;
  x.has_shape_ = true;
  return x;
}

View Tensor::view() const {
  if (!is_defined()) return View();
  require(has_data(), "Tensor: this tensor of shape {} has no data", shape_);
  return View(static_cast<char*>(storage_->memory) + offset_bytes_, shape_, dtype_, device_, row_stride_);
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

Tensor empty(Shape shape, DType dtype, Device device) {
  return Tensor(shape, dtype, current_memory_category(), device);
}
Tensor empty(Shape shape, DType dtype, MemoryCategory category, Device device) {
  return Tensor(shape, dtype, category, device);
}
Tensor empty_like(const Tensor& x) { return empty(x.shape(), x.dtype(), x.device()); }
Tensor zeros(Shape shape, DType dtype, Device device) { return zeros(shape, dtype, current_memory_category(), device); }
Tensor zeros(Shape shape, DType dtype, MemoryCategory category, Device device) {
  Tensor x(shape, dtype, category, device);
  fill_zero(x);
  return x;
}

void fill_zero(const Tensor& x) {
  require(x.is_contiguous(), "fill_zero: a slice of columns of shape {}; wanted contiguous rows", x.shape());
  if (x.device().is_cpu()) {
    std::memset(x.view().raw(), 0, size_t(x.num_bytes()));
  } else {
    gpu::fill(x.view().raw(), 0, x.num_bytes(), x.stream());
  }
}

}  // namespace octet
