#include "core/tensor/transfer.h"

#include <cstring>

#include "core/tensor/pinned_pool.h"

namespace octet {
namespace {

int64_t row_bytes(const View& x) { return x.cols() * size_of(x.dtype()); }
int64_t pitch(const View& x) { return x.row_stride() * size_of(x.dtype()); }

void copy_rows_on_host(void* to, int64_t to_pitch, const void* from, int64_t from_pitch, int64_t bytes, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(static_cast<char*>(to) + r * to_pitch, static_cast<const char*>(from) + r * from_pitch, size_t(bytes));
  }
}

}  // namespace

void copy(const Tensor& from, const Tensor& to) {
  require(from.rows() == to.rows() && from.cols() == to.cols() && from.dtype() == to.dtype(),
          "copy: {} {} to {} {}; wanted one shape and dtype", from.dtype(), from.shape(), to.dtype(), to.shape());
  if (from.num_elements() == 0) return;
  const View source = from, target = to;
  const int64_t bytes = row_bytes(source), rows = source.rows();
  if (from.device().is_cpu() && to.device().is_cpu()) {
    if (source.raw() == target.raw()) return;
    copy_rows_on_host(target.raw(), pitch(target), source.raw(), pitch(source), bytes, rows);
    return;
  }
  if (!from.device().is_cpu() && !to.device().is_cpu()) {
    gpu::copy_rows(target.raw(), pitch(target), source.raw(), pitch(source), bytes, rows, to.stream());
    return;
  }
  PinnedPool::Block block = PinnedPool::instance().take(bytes * rows);
  if (from.device().is_cpu()) {
    copy_rows_on_host(block.data, bytes, source.raw(), pitch(source), bytes, rows);
    gpu::copy_rows(target.raw(), pitch(target), block.data, bytes, bytes, rows, to.stream());
    block.free_at.record(to.stream());
  } else {
    gpu::copy_rows(block.data, bytes, source.raw(), pitch(source), bytes, rows, from.stream());
    block.free_at.record(from.stream());
    block.free_at.wait();
    copy_rows_on_host(target.raw(), pitch(target), block.data, bytes, bytes, rows);
  }
  PinnedPool::instance().give_back(std::move(block));
}

Tensor on_host(const Tensor& x) {
  if (x.device().is_cpu()) return x;
  Tensor host = empty(x.shape(), x.dtype(), MemoryCategory::kWorkspace);
  copy(x, host);
  return host;
}

Tensor on_device(const Tensor& x, Device device) {
  if (device.is_cpu()) return x;
  Tensor there = empty(x.shape(), x.dtype(), device);
  copy(x, there);
  return there;
}

struct Readback::Landing {
  PinnedPool::Block block;
  Landing() = default;
  ~Landing() { PinnedPool::instance().give_back(std::move(block)); }
  Landing(const Landing&) = delete;
  Landing& operator=(const Landing&) = delete;
};

Readback::Readback(const Tensor& x) : dtype_(x.dtype()), count_(x.num_elements()) {
  require(x.is_contiguous(), "Readback: a slice of columns of shape {}; wanted contiguous rows", x.shape());
  if (x.device().is_cpu()) {
    numbers_ = x.detach();
    return;
  }
  *this = Readback(x.view(), x.stream());
}

Readback::Readback(const ConstView& x, Stream& stream)
    : landing_(std::make_shared<Landing>()), dtype_(x.dtype()), count_(x.num_elements()) {
  const int64_t bytes = count_ * size_of(dtype_);
  landing_->block = PinnedPool::instance().take(bytes);
  gpu::copy(landing_->block.data, x.raw(), bytes, stream);
  landing_->block.free_at.record(stream);
}

const void* Readback::wait_raw() const {
  if (landing_ == nullptr) return numbers_.view().raw();
  // A wait for what came later on its stream was one for this too.
  if (!landing_->block.free_at.is_done()) landing_->block.free_at.wait();
  return landing_->block.data;
}

}  // namespace octet
