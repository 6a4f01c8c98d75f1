// octet doctor: what of this machine octet can use, and what keeps it from the rest.
#include <cstdio>

#include "core/base/isa.h"
#include "core/base/shared_library.h"
#include "core/base/thread_pool.h"
#include "core/tensor/transfer.h"
#include "kernels/device_runtime.h"
#include "tools/commands/commands.h"

namespace octet {
namespace {

constexpr double kGiB = double(int64_t(1) << 30);

void line(const char* what, const std::string& text) { fmt::print("{:<10} {}\n", what, text); }

std::string cuda_version(int number) { return fmt::format("{}.{}", number / 1000, number % 1000 / 10); }

// The NCCL that a launch on GPUs would load, or 0. Its version is major * 10000 + minor * 100 + patch from 2.9 on
// (nccl.h, NCCL_VERSION).
int loaded_nccl() {
  int version = 0;
  int (*get_version)(int*) = nullptr;
  if (SharedLibrary("libnccl.so.2").find("ncclGetVersion", get_version) && get_version(&version) != 0) version = 0;
  return version;
}
std::string nccl_version(int number) {
  return fmt::format("{}.{}.{}", number / 10000, number / 100 % 100, number % 100);
}

void show_nccl(std::vector<Report>& faults) {
  if (OCTET_NCCL_VERSION == 0) {
    line("NCCL", "octet was built without it: ranks talk MPI");
    return;
  }
  const int loaded = loaded_nccl();
  const std::string built = nccl_version(OCTET_NCCL_VERSION);
  line("NCCL",
       fmt::format("built with {}; {}", built, loaded == 0 ? "none found here" : nccl_version(loaded) + " here"));
  if (loaded == 0) {
    faults.push_back({.what = "NCCL: libnccl.so.2 cannot be loaded",
                      .where = {},
                      .why = "ranks on several GPUs could not talk to each other",
                      .fix = "install NCCL " + built + " or later, or add its directory to LD_LIBRARY_PATH"});
  } else if (loaded < OCTET_NCCL_VERSION || loaded / 10000 != OCTET_NCCL_VERSION / 10000) {
    faults.push_back(
        {.what = fmt::format("NCCL: {} is installed, octet was built with {}", nccl_version(loaded), built),
         .where = {},
         .why = "it lacks what octet may call",
         .fix = "install NCCL " + built + " or a later one of the same major version"});
  }
}

// Writes, copies and reads a little memory: a driver that lists a GPU may still fail to run anything on it.
void try_gpu(Device device) {
  const std::vector<int32_t> sent = {1, -2, 3};
  const Tensor there = from_vector(sent, {3}, device), copied = empty({3}, DType::kInt32, device);
  copy(there, copied);
  require(ErrorKind::kDevice, to_vector<int32_t>(copied) == sent, "{} does not give back what was written to it",
          device);
}

void show_gpus(std::vector<Report>& faults) {
  const gpu::Runtime runtime = gpu::runtime();
  line("built for", gpu::built_for());
  if (runtime.driver > 0) line("driver", "serves CUDA " + cuda_version(runtime.driver));
  if (runtime.count == 0) line("GPUs", "none: " + runtime.trouble);
  int usable = 0;
  for (int index = 0; index < runtime.count; ++index) {
    const Device device{.type = DeviceType::kCuda, .index = index};
    try {
      const gpu::Properties gpu = gpu::properties(index);
      line(fmt::format("GPU {}", index).c_str(),
           fmt::format("{}, compute capability {}.{}, {} multiprocessors, {:.1f} GiB", gpu.name, gpu.major, gpu.minor,
                       gpu.multiprocessors, double(gpu.memory_bytes) / kGiB));
      gpu::open(device);
      try_gpu(device);
      ++usable;
    } catch (const Error& error) {
      faults.push_back(error.report());
    }
  }
  const bool was_wanted = gpu::is_built_in();
  if (usable == 0 && faults.empty() && was_wanted) {
    faults.push_back({.what = "no GPU can be used: " + runtime.trouble,
                      .where = runtime.driver == 0 ? "no driver for NVIDIA GPUs answers"
                                                   : "the driver serves CUDA " + cuda_version(runtime.driver),
                      .why = "device: cuda is refused on this machine; device: cpu works",
                      .fix = "install a driver for CUDA 13 or later on a machine with an H100 or H200"});
  }
  if (usable > 0) show_nccl(faults);
}

int run_doctor() {
  line("octet", version_text());
  line("CPU", fmt::format("{} threads, {} kernels", usable_cores(), name_of(current_isa())));
  std::vector<Report> faults;
  show_gpus(faults);
  if (faults.empty()) {
    line("", gpu::is_built_in() ? "device: cpu and device: cuda can be used" : "device: cpu can be used");
    return 0;
  }
  std::fflush(stdout);
  if (faults.size() == 1) fail(ErrorKind::kDevice, faults[0]);
  fail(ErrorKind::kDevice, "device: cuda cannot be used as it is", faults);
}

}  // namespace

void add_doctor_command(CommandLine& line) {
  Command command =
      line.subcommand("doctor", "Show what octet finds of this machine: CPU, driver, GPUs, NCCL; and what is wrong");
  command.footer(
      "Exit code 0: all that this octet was built for can be used; 2: a GPU cannot, with the reason. Device: cpu\n"
      "works in either case.");
  command.run(run_doctor);
}

void add_device_option(Command& command, std::string* device) {
  command.option("--device", device, "Where the model runs").one_of({"cpu", "cuda"}).shows_default();
}
DeviceType device_type(const std::string& name) { return name == "cuda" ? DeviceType::kCuda : DeviceType::kCpu; }

}  // namespace octet
