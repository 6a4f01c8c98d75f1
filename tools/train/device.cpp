#include "tools/train/device.h"

#include <algorithm>
#include <cstdlib>

#include "core/base/isa.h"
#include "core/base/log.h"
#include "core/base/thread_pool.h"
#include "kernels/device_runtime.h"
#include "parallel/agreement.h"
#include "parallel/launch_environment.h"
#include "parallel/nccl_communicator.h"
#include "parallel/parallel_config.h"
#include "parallel/staged_communicator.h"

namespace octet {

Device open_device(DeviceType type) {
  if (type == DeviceType::kCpu) return {};
  const int gpus = gpu::runtime().count;
  const Device device{.type = DeviceType::kCuda, .index = gpus == 0 ? 0 : local_rank() % gpus};
  gpu::open(device);
  return device;
}

namespace {

// NCCL takes ranks for those of different hosts where this differs, and lets them share a GPU: for tests.
bool names_its_host() { return std::getenv("NCCL_HOSTID") != nullptr; }

// The first thing that keeps the ranks from NCCL; the same on each.
std::string nccl_trouble_of(Communicator& world, Device device) {
  const std::string trouble = nccl_trouble();
  const std::vector<std::string> troubles = gather_texts(world, trouble);
  const std::vector<std::string> ids =
      gather_texts(world, names_its_host() ? fmt::format("rank {}", world.rank()) : gpu::properties(device.index).id);
  for (int rank = 0; rank < world.size(); ++rank) {
    const auto r = size_t(rank);
    const std::string who = fmt::format("rank {} (host {})", rank, world.host(rank));
    if (!troubles[r].empty()) return fmt::format("{} has no NCCL: {}", who, troubles[r]);
    if (ids[r].empty()) return fmt::format("{} has an emulated GPU", who);
    const auto first = std::find(ids.begin(), ids.end(), ids[r]) - ids.begin();
    if (first != rank) return fmt::format("{} and rank {} share a GPU", who, first);
  }
  return {};
}

}  // namespace

std::unique_ptr<Communicator> make_gpu_communicator(Communicator* world, Device device, const ParallelConfig& config) {
  if (world == nullptr || world->size() == 1 || device.is_cpu()) return nullptr;
  if (config.gpu_transport == GpuTransport::kStaged) return make_staged_communicator(*world, device);
  const std::string trouble = nccl_trouble_of(*world, device);
  if (trouble.empty()) {
    log_info("{} ranks talk NCCL", world->size());
    return make_nccl_communicator(*world, device.index, {.timeout_s = config.timeout_s});
  }
  if (config.gpu_transport == GpuTransport::kNccl) {
    fail_together(*world, Error(ErrorKind::kDevice, {.what = "parallel.gpu_transport is nccl, and " + trouble,
                                                     .where = {},
                                                     .why = "NCCL wants a GPU of its own for each rank",
                                                     .fix = "give each rank a GPU, or set parallel.gpu_transport: auto "
                                                            "or staged"}));
  }
  log_info("{} ranks talk by way of host memory: {}", world->size(), trouble);
  return make_staged_communicator(*world, device);
}

std::string nccl_trouble_of(int64_t ranks) {
  if (std::string trouble = nccl_trouble(); !trouble.empty()) return trouble;
  // A launched rank may see one GPU of several; make_gpu_communicator compares them.
  const int gpus = gpu::runtime().count;
  if (local_ranks() == 1 && gpus < ranks && !names_its_host())
    return fmt::format("{} ranks share {} GPU{}", ranks, gpus, gpus == 1 ? "" : "s");
  return {};
}

std::string describe(Device device) {
  if (device.is_cpu()) {
    return fmt::format("{} threads, {} kernels", default_thread_pool().num_threads(), name_of(current_isa()));
  }
  const gpu::Properties properties = gpu::properties(device.index);
  return fmt::format("{}, {:.1f} GiB", properties.name, double(properties.memory_bytes) / double(int64_t(1) << 30));
}

}  // namespace octet
