#include "kernels/device_runtime.h"

#include <array>
#include <atomic>
#include <mutex>
#include <utility>

#include "core/base/log.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/multiprocessors.h"

namespace octet::gpu {
namespace {

std::mutex opening;
std::array<std::atomic<bool>, kMostGpus> opened;
std::atomic<int64_t> waits{0};

void choose(Device device) { check(cudaSetDevice(device.index), "cudaSetDevice"); }

std::string version(int number) { return fmt::format("{}.{}", number / 1000, number % 1000 / 10); }

[[noreturn]] void refuse(Device device, const Runtime& found) {
  fail(ErrorKind::kDevice,
       {.what = found.count == 0 ? fmt::format("{} cannot be used: {}", device, found.trouble)
                                 : fmt::format("{} is not there; this machine has {} GPU{}", device, found.count,
                                               found.count == 1 ? "" : "s"),
        .where = found.driver == 0 ? "no driver for NVIDIA GPUs answers"
                                   : fmt::format("the driver serves CUDA {}, octet was built with {}",
                                                 version(found.driver), version(CUDART_VERSION)),
        .why = {},
        .fix = "octet doctor says more; device: cpu runs everywhere"});
}

}  // namespace

std::string built_for() { return "CUDA " + version(CUDART_VERSION); }
bool is_built_in() { return true; }

Runtime runtime() {
  Runtime found;
  if (cudaDriverGetVersion(&found.driver) != cudaSuccess) found.driver = 0;
  const cudaError_t status = cudaGetDeviceCount(&found.count);
  if (status == cudaSuccess && found.count > 0) return found;
  found.count = 0;
  found.trouble = status == cudaSuccess ? "the driver sees no GPU" : cudaGetErrorString(status);
  cudaGetLastError();  // or the next check of a launch would find it
  return found;
}

Properties properties(int index) {
  cudaDeviceProp found{};
  check(cudaGetDeviceProperties(&found, index), "cudaGetDeviceProperties");
  return {.name = found.name,
          .major = found.major,
          .minor = found.minor,
          .memory_bytes = int64_t(found.totalGlobalMem),
          .multiprocessors = found.multiProcessorCount};
}

int multiprocessors(Device device) {
  static std::array<std::atomic<int>, kMostGpus> known;
  std::atomic<int>& count = known.at(size_t(device.index));
  if (count == 0) {
    int asked = 0;
    check(cudaDeviceGetAttribute(&asked, cudaDevAttrMultiProcessorCount, device.index), "cudaDeviceGetAttribute");
    count = asked;
  }
  return count;
}

void open(Device device) {
  const Runtime found = runtime();
  if (device.is_cpu() || device.index < 0 || device.index >= std::min(found.count, kMostGpus)) refuse(device, found);
  const std::lock_guard lock(opening);
  if (is_open(device)) return;
  const Properties gpu = properties(device.index);
  if (gpu.major != kComputeMajor || gpu.minor != kComputeMinor) {
    fail(ErrorKind::kDevice, {.what = fmt::format("{} is a {} of compute capability {}.{}; octet has kernels for {}.{}",
                                                  device, gpu.name, gpu.major, gpu.minor, kComputeMajor, kComputeMinor),
                              .where = {},
                              .why = "its kernels use instructions that only NVIDIA Hopper has",
                              .fix = "run on an H100 or H200, or set device: cpu"});
  }
  choose(device);
  cudaMemPool_t pool = nullptr;
  check(cudaDeviceGetDefaultMemPool(&pool, device.index), "cudaDeviceGetDefaultMemPool");
  uint64_t keep_all = UINT64_MAX;  // what is freed is handed out again, and never goes back to the driver in between
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep_all), "cudaMemPoolSetAttribute");
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  set_default_stream(device, new Stream(default_thread_pool(), device, stream));  // for the life of the process
  opened[size_t(device.index)] = true;
}

bool is_open(Device device) {
  return !device.is_cpu() && 0 <= device.index && device.index < kMostGpus && opened[size_t(device.index)];
}

MemoryLevel memory_level(Device device) {
  choose(device);
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return {.free_bytes = int64_t(free), .total_bytes = int64_t(total)};
}

void* allocate(int64_t bytes, const char*, Stream& stream) {
  choose(stream.device());
  void* memory = nullptr;
  const auto attempt = [&] { return cudaMallocAsync(&memory, size_t(std::max<int64_t>(bytes, 1)), stream.cuda()); };
  cudaError_t status = attempt();
  if (status == cudaErrorMemoryAllocation) {
    // What waits to be freed in the order of the stream, and what the pool keeps in pieces, may be enough.
    cudaGetLastError();
    synchronize(stream);
    cudaMemPool_t pool = nullptr;
    check(cudaDeviceGetDefaultMemPool(&pool, stream.device().index), "cudaDeviceGetDefaultMemPool");
    check(cudaMemPoolTrimTo(pool, 0), "cudaMemPoolTrimTo");
    status = attempt();
  }
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check(status, "cudaMallocAsync");
  return memory;
}

void release(void* memory, Stream& stream) noexcept {
  const cudaError_t status = cudaFreeAsync(memory, stream.cuda());
  // At the end of the process the runtime may be gone before the last tensor.
  if (status != cudaSuccess && status != cudaErrorCudartUnloading) {
    log_error("cudaFreeAsync: {}", cudaGetErrorString(status));
  }
}

std::byte* allocate_pinned(int64_t bytes) {
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, size_t(std::max<int64_t>(bytes, 1)), cudaHostAllocPortable), "cudaHostAlloc");
  return static_cast<std::byte*>(memory);
}

void release_pinned(std::byte* memory) noexcept {
  const cudaError_t status = cudaFreeHost(memory);
  if (status != cudaSuccess && status != cudaErrorCudartUnloading) {
    log_error("cudaFreeHost: {}", cudaGetErrorString(status));
  }
}

void copy(void* to, const void* from, int64_t bytes, Stream& stream) {
  if (bytes == 0) return;
  choose(stream.device());
  check(cudaMemcpyAsync(to, from, size_t(bytes), cudaMemcpyDefault, stream.cuda()), "cudaMemcpyAsync");
}

void copy_rows(void* to, int64_t to_pitch, const void* from, int64_t from_pitch, int64_t row_bytes, int64_t rows,
               Stream& stream) {
  if (row_bytes == 0 || rows == 0) return;
  choose(stream.device());
  check(cudaMemcpy2DAsync(to, size_t(to_pitch), from, size_t(from_pitch), size_t(row_bytes), size_t(rows),
                          cudaMemcpyDefault, stream.cuda()),
        "cudaMemcpy2DAsync");
}

void fill(void* to, int byte, int64_t bytes, Stream& stream) {
  if (bytes == 0) return;
  choose(stream.device());
  check(cudaMemsetAsync(to, byte, size_t(bytes), stream.cuda()), "cudaMemsetAsync");
}

void synchronize(Stream& stream) {
  ++waits;
  check(cudaStreamSynchronize(stream.cuda()), "cudaStreamSynchronize");
}

int64_t host_waits() { return waits; }

Event::~Event() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}
Event::Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)), device_(other.device_) {}
Event& Event::operator=(Event&& other) noexcept {
  std::swap(event_, other.event_);
  std::swap(device_, other.device_);
  return *this;
}

void Event::record(Stream& stream) {
  choose(stream.device());
  if (event_ != nullptr && device_ != stream.device()) *this = Event();
  if (event_ == nullptr) {
    check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  }
  device_ = stream.device();
  check(cudaEventRecord(event_, stream.cuda()), "cudaEventRecord");
}

bool Event::is_done() const {
  if (event_ == nullptr) return true;
  const cudaError_t status = cudaEventQuery(event_);
  if (status == cudaErrorNotReady) return false;
  check(status, "cudaEventQuery");
  return true;
}

void Event::wait() const {
  if (event_ == nullptr) return;
  ++waits;
  check(cudaEventSynchronize(event_), "cudaEventSynchronize");
}

void Event::hold(Stream& stream) const {
  if (event_ == nullptr) return;
  choose(stream.device());
  check(cudaStreamWaitEvent(stream.cuda(), event_, 0), "cudaStreamWaitEvent");
}

struct Stopwatch::Places {
  cudaEvent_t from = nullptr, to = nullptr;
  Places() {
    check(cudaEventCreate(&from), "cudaEventCreate");
    check(cudaEventCreate(&to), "cudaEventCreate");
  }
  ~Places() {
    cudaEventDestroy(from);
    cudaEventDestroy(to);
  }
  Places(const Places&) = delete;
  Places& operator=(const Places&) = delete;
};
void Stopwatch::start(Stream& stream) {
  choose(stream.device());
  places_ = std::make_shared<Places>();
  check(cudaEventRecord(places_->from, stream.cuda()), "cudaEventRecord");
}
void Stopwatch::stop(Stream& stream) { check(cudaEventRecord(places_->to, stream.cuda()), "cudaEventRecord"); }
double Stopwatch::seconds() const {
  ++waits;
  check(cudaEventSynchronize(places_->to), "cudaEventSynchronize");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, places_->from, places_->to), "cudaEventElapsedTime");
  return double(milliseconds) * 1e-3;
}

std::shared_ptr<Stream> make_stream(Device device) {
  open(device);
  choose(device);
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return {new Stream(default_thread_pool(), device, stream), [](const Stream* owned) {
            cudaStreamDestroy(owned->cuda());
            delete owned;
          }};
}

FaultRecord* fault_record(Device device) {
  static std::array<std::atomic<FaultRecord*>, kMostGpus> records;
  std::atomic<FaultRecord*>& record = records[size_t(device.index)];
  if (record != nullptr) return record;
  const std::lock_guard lock(opening);
  if (record != nullptr) return record;
  choose(device);
  void* memory = nullptr;
  check(cudaMalloc(&memory, sizeof(FaultRecord)), "cudaMalloc");
  check(cudaMemset(memory, 0, sizeof(FaultRecord)), "cudaMemset");
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // streams do not wait for the default one
  return record = static_cast<FaultRecord*>(memory);
}

void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }
LaunchWindow::LaunchWindow(const char*) {}
LaunchWindow::~LaunchWindow() = default;
bool is_device_memory(const void*) { return true; }

}  // namespace octet::gpu
