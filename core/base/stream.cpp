#include "core/base/stream.h"

#include <array>
#include <atomic>

#include "core/base/error.h"

namespace octet {
namespace {

std::array<std::atomic<Stream*>, kMostGpus> gpu_streams;

}  // namespace

Stream& default_stream(Device device) {
  if (device.is_cpu()) {
    static Stream stream(default_thread_pool());
    return stream;
  }
  const bool is_index = 0 <= device.index && device.index < kMostGpus;
  Stream* const stream = is_index ? gpu_streams[size_t(device.index)].load(std::memory_order_acquire) : nullptr;
  require(ErrorKind::kDevice, stream != nullptr, "default_stream: {} was not opened", device);
  return *stream;
}

void set_default_stream(Device device, Stream* stream) {
  require(ErrorKind::kDevice, !device.is_cpu() && 0 <= device.index && device.index < kMostGpus,
          "set_default_stream: {}; wanted cuda:0 to cuda:{}", device, kMostGpus - 1);
  gpu_streams[size_t(device.index)].store(stream, std::memory_order_release);
}

}  // namespace octet
