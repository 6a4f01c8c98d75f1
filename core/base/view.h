// What a kernel sees of a tensor: an address, a shape, a row stride, a dtype and a device. A view owns nothing.
// The last axis is contiguous; the axes before it are rows, `row_stride` elements apart, so that a slice of columns
// (the queries inside a fused query-key-value matrix) is a view too.
#pragma once

#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/base/device.h"
#include "core/base/dtype.h"
#include "core/base/error.h"

namespace octet {

inline constexpr int kMaxRank = 4;

class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) {
    require(sizes.size() <= size_t(kMaxRank), "Shape: rank {}; wanted at most {}", sizes.size(), kMaxRank);
    for (int64_t size : sizes) {
      require(size >= 0, "Shape: a size of {}; wanted 0 or more", size);
      sizes_[size_t(rank_++)] = size;
    }
  }
  int rank() const { return rank_; }
  // axis may be negative: -1 is the last.
  int64_t operator[](int axis) const { return sizes_[size_t(axis < 0 ? axis + rank_ : axis)]; }
  int64_t num_elements() const {
    int64_t n = 1;
    for (int axis = 0; axis < rank_; ++axis) n *= sizes_[size_t(axis)];
    return n;
  }
  // The last axis, 1 for a scalar; and the product of all axes before it.
  int64_t cols() const { return rank_ == 0 ? 1 : sizes_[size_t(rank_ - 1)]; }
  int64_t rows() const {
    int64_t n = 1;
    for (int axis = 0; axis + 1 < rank_; ++axis) n *= sizes_[size_t(axis)];
    return n;
  }
  bool operator==(const Shape& other) const {
    if (rank_ != other.rank_) return false;
    for (int axis = 0; axis < rank_; ++axis) {
      if (sizes_[size_t(axis)] != other.sizes_[size_t(axis)]) return false;
    }
    return true;
  }

 private:
  std::array<int64_t, kMaxRank> sizes_{};
  int rank_ = 0;
};

// "[2, 3]"
inline std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int axis = 0; axis < shape.rank(); ++axis) text += fmt::format("{}{}", axis == 0 ? "" : ", ", shape[axis]);
  return text + "]";
}

namespace detail {
template <class Void>
class BasicView {
 public:
  template <class T>
  using Pointer = std::conditional_t<std::is_const_v<Void>, const T*, T*>;

  BasicView() = default;  // no tensor: data() is null and is_defined() false; for arguments that may be left out
  BasicView(Void* data, Shape shape, DType dtype, Device device = {}, int64_t row_stride = -1)
      : data_(data),
        shape_(shape),
        row_stride_(row_stride < 0 ? shape.cols() : row_stride),
        dtype_(dtype),
        device_(device) {}
  // A View is a ConstView too.
  template <class Other>
  requires(std::is_const_v<Void> && !std::is_const_v<Other>) BasicView(const BasicView<Other>& other)
      : data_(other.raw()),
        shape_(other.shape()),
        row_stride_(other.row_stride()),
        dtype_(other.dtype()),
        device_(other.device()) {}

  bool is_defined() const { return data_ != nullptr; }
  Void* raw() const { return data_; }
  // The first element. T must be the dtype's own C++ type, or have its size (uint8_t for FP8 codes).
  template <class T>
  Pointer<T> data() const {
    return static_cast<Pointer<T>>(data_);
  }
  template <class T>
  Pointer<T> row(int64_t index) const {
    return data<T>() + index * row_stride_;
  }
  const Shape& shape() const { return shape_; }
  int64_t size(int axis) const { return shape_[axis]; }
  int64_t rows() const { return shape_.rows(); }
  int64_t cols() const { return shape_.cols(); }
  int64_t num_elements() const { return shape_.num_elements(); }
  int64_t row_stride() const { return row_stride_; }
  bool is_contiguous() const { return row_stride_ == cols() || rows() <= 1; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }

 private:
  Void* data_ = nullptr;
  Shape shape_;
  int64_t row_stride_ = 0;
  DType dtype_ = DType::kFloat32;
  Device device_;
};
}  // namespace detail

using View = detail::BasicView<void>;
using ConstView = detail::BasicView<const void>;

}  // namespace octet

template <>
struct fmt::formatter<octet::Shape> : fmt::formatter<std::string> {
  auto format(const octet::Shape& shape, fmt::format_context& context) const {
    return fmt::formatter<std::string>::format(octet::to_string(shape), context);
  }
};
