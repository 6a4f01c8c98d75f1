#include "tools/train/device.h"

#include "core/base/isa.h"
#include "core/base/thread_pool.h"
#include "kernels/device_runtime.h"
#include "parallel/launch_environment.h"
#include "parallel/staged_communicator.h"

namespace octet {

Device open_device(DeviceType type) {
  if (type == DeviceType::kCpu) return {};
  const int gpus = gpu::runtime().count;
  const Device device{.type = DeviceType::kCuda, .index = gpus == 0 ? 0 : local_rank() % gpus};
  gpu::open(device);
  return device;
}

std::unique_ptr<Communicator> staged_for(Communicator* world, Device device) {
  if (world == nullptr || world->size() == 1 || device.is_cpu()) return nullptr;
  return make_staged_communicator(*world, device);
}

std::string describe(Device device) {
  if (device.is_cpu()) {
    return fmt::format("{} threads, {} kernels", default_thread_pool().num_threads(), name_of(current_isa()));
  }
  const gpu::Properties properties = gpu::properties(device.index);
  return fmt::format("{}, {:.1f} GiB", properties.name, double(properties.memory_bytes) / double(int64_t(1) << 30));
}

}  // namespace octet
