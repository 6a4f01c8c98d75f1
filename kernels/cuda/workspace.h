#pragma once

#include <cstdint>

#include "core/base/error.h"
#include "core/base/stream.h"
#include "kernels/device_runtime.h"

namespace octet::kernels::cuda {

// Memory of the device for the life of the object, in the order of the stream. what lives for ever.
template <class T>
class Workspace {
 public:
  Workspace(const char* what, int64_t count, Stream& stream) : stream_(stream) {
    if (count == 0) return;
    data_ = gpu::allocate(count * int64_t(sizeof(T)), what, stream);
    require(ErrorKind::kMemory, data_ != nullptr, "{}: no device memory left for {} bytes of intermediate results",
            what, count * int64_t(sizeof(T)));
  }
  ~Workspace() {
    if (data_ != nullptr) gpu::release(data_, stream_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  T* data() { return static_cast<T*>(data_); }

 private:
  Stream& stream_;
  void* data_ = nullptr;
};

}  // namespace octet::kernels::cuda
