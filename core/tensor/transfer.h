// Numbers on their way between the host and a device. A GPU's copies go through pinned host memory and do not make the
// host wait, but where the host asks for numbers that a GPU holds.
#pragma once

#include <span>
#include <vector>

#include "core/tensor/tensor.h"

namespace octet {

// to = from: the same shape seen as [rows, cols] and the same dtype, on any two devices; rows may be strided. To a GPU
// it returns at once, and `from` may change when it has; from a GPU to the host it waits.
void copy(const Tensor& from, const Tensor& to);
// x itself where it is on the CPU; otherwise a contiguous copy, for which the host waits.
Tensor on_host(const Tensor& x);
// x itself where the device is the CPU; otherwise a contiguous copy there. x: on the CPU.
Tensor on_device(const Tensor& x, Device device);

// A tensor whose numbers the host will read later: on a GPU they start on their way now.
class Readback {
 public:
  Readback() = default;
  // x: contiguous, and on the CPU not changed until it was read.
  explicit Readback(const Tensor& x);
  // Of memory of a GPU that no tensor has.
  Readback(const ConstView& x, Stream& stream);
  bool is_defined() const { return numbers_.is_defined() || landing_ != nullptr; }
  // Waits where they have not come yet. Valid as long as this object and its copies.
  template <class T>
  std::span<const T> wait() const {
    require(dtype_ == dtype_of<T>, "Readback: {}; asked for {}", dtype_, dtype_of<T>);
    return {static_cast<const T*>(wait_raw()), size_t(count_)};
  }

 private:
  struct Landing;
  const void* wait_raw() const;

  Tensor numbers_;  // on the CPU
  std::shared_ptr<Landing> landing_;
  DType dtype_ = DType::kFloat32;
  int64_t count_ = 0;
};

template <class T>
Tensor from_vector(const std::vector<T>& values, Shape shape, Device device = {}) {
  require(int64_t(values.size()) == shape.num_elements(), "from_vector: {} values for shape {}", values.size(), shape);
  Tensor x = empty(shape, dtype_of<T>);
  std::copy(values.begin(), values.end(), x.data<T>());
  return on_device(x, device);
}
template <class T>
std::vector<T> to_vector(const Tensor& x) {
  const Tensor host = on_host(x);
  std::vector<T> values;
  values.reserve(size_t(x.num_elements()));
  for (int64_t r = 0; r < host.rows(); ++r) {
    const T* row = host.view().row<T>(r);
    values.insert(values.end(), row, row + host.cols());
  }
  return values;
}

}  // namespace octet
