#pragma once

#include <cstdint>

#include "core/base/error.h"
#include "core/base/stream.h"
#include "kernels/device_runtime.h"
#include "kernels/memory_holders.h"

namespace octet::kernels::cuda {

// Memory of the device for the life of the object, in the order of the stream. what lives for ever.
template <class T>
class Workspace {
 public:
  Workspace(const char* what, int64_t count, Stream& stream) : stream_(stream) {
    if (count == 0) return;
    data_ = gpu::allocate(count * int64_t(sizeof(T)), what, stream);
    if (data_ == nullptr) refuse(what, count * int64_t(sizeof(T)));
  }
  ~Workspace() {
    if (data_ != nullptr) gpu::release(data_, stream_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  T* data() { return static_cast<T*>(data_); }

 private:
  [[noreturn]] void refuse(const char* what, int64_t bytes) const {
    fail(ErrorKind::kMemory, {.what = fmt::format("out of memory: {:.1f} MiB more for intermediate results of {}",
                                                  double(bytes) / (1 << 20), what),
                              .where = describe_holders(stream_.device()),
                              .why = {},
                              .fix = "lower train.micro_batch or data.seq_len; octet check predicts"});
  }

  Stream& stream_;
  void* data_ = nullptr;
};

}  // namespace octet::kernels::cuda
