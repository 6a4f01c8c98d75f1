#include "kernels/device_runtime.h"

#include <array>
#include <atomic>
#include <mutex>
#include <thread>
#include <utility>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "kernels/cuda/capture_rules.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/multiprocessors.h"
#include "kernels/wait_look.h"

namespace octet::gpu {
namespace {

std::mutex opening;
std::array<std::atomic<bool>, kMostGpus> opened;
std::atomic<int64_t> waits{0};

void choose(Device device) { check(cudaSetDevice(device.index), "cudaSetDevice"); }

// How a copy is asked for. In a capture both ends are the GPU's: pinned memory is handed on as soon as a copy is done,
// which a graph would repeat, and a graph's own memory is not there yet for the runtime to look at.
cudaMemcpyKind kind_of_copy(const void* to, const void* from) {
  if (CaptureRules::current() == nullptr) return cudaMemcpyDefault;
  for (const void* memory : {to, from}) {
    cudaPointerAttributes found{};
    const cudaError_t status = cudaPointerGetAttributes(&found, memory);
    if (status != cudaSuccess) cudaGetLastError();  // or the next check of a launch would find it
    if (status == cudaSuccess && found.type == cudaMemoryTypeHost) CaptureRules::refuse("a copy from or to the host");
  }
  return cudaMemcpyDeviceToDevice;
}

void trim_pool(Device device) {
  cudaMemPool_t pool = nullptr;
  check(cudaDeviceGetDefaultMemPool(&pool, device.index), "cudaDeviceGetDefaultMemPool");
  check(cudaMemPoolTrimTo(pool, 0), "cudaMemPoolTrimTo");
}

// The host waits until is_done, a query of the runtime, says so: in `wait`, or, where there is something to look at
// meanwhile, by asking again and again.
void wait_until(const char* call, auto&& is_done, auto&& wait) {
  ++waits;
  if (!has_wait_looks()) return check(wait(), call);
  double next_look = real_clock().seconds() + kLookEvery;
  for (;;) {
    const cudaError_t state = is_done();
    if (state != cudaErrorNotReady) return check(state, call);
    std::this_thread::sleep_for(std::chrono::microseconds(20));
    if (real_clock().seconds() < next_look) continue;
    look_while_waiting();
    next_look = real_clock().seconds() + kLookEvery;
  }
}
void wait_for_event(cudaEvent_t event) {
  wait_until(
      "cudaEventSynchronize", [&] { return cudaEventQuery(event); }, [&] { return cudaEventSynchronize(event); });
}

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
  std::string id;
  for (const char byte : found.uuid.bytes) id += fmt::format("{:02x}", uint8_t(byte));
  return {.name = found.name,
          .major = found.major,
          .minor = found.minor,
          .memory_bytes = int64_t(found.totalGlobalMem),
          .multiprocessors = found.multiProcessorCount,
          .id = std::move(id)};
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

void* allocate(int64_t bytes, const char* what, Stream& stream) {
  choose(stream.device());
  void* memory = nullptr;
  const auto attempt = [&] { return cudaMallocAsync(&memory, size_t(std::max<int64_t>(bytes, 1)), stream.cuda()); };
  cudaError_t status = attempt();
  CaptureRules* const capture = CaptureRules::current();
  if (status == cudaErrorMemoryAllocation && capture == nullptr) {
    // What waits to be freed in the order of the stream, and what the pool and graphs keep, may be enough.
    cudaGetLastError();
    synchronize(stream);
    trim_pool(stream.device());
    check(cudaDeviceGraphMemTrim(stream.device().index), "cudaDeviceGraphMemTrim");
    status = attempt();
  }
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check(status, "cudaMallocAsync");
  if (capture != nullptr) capture->allocated(memory, bytes, what);
  return memory;
}

void release(void* memory, Stream& stream) noexcept {
  if (CaptureRules* capture = CaptureRules::current(); capture != nullptr && !capture->released(memory)) return;
  const cudaError_t status = cudaFreeAsync(memory, stream.cuda());
  // At the end of the process the runtime may be gone before the last tensor.
  if (status != cudaSuccess && status != cudaErrorCudartUnloading) {
    log_error("cudaFreeAsync: {}", cudaGetErrorString(status));
  }
}

std::byte* allocate_pinned(int64_t bytes) {
  CaptureRules::refuse("pinned memory");
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
  check(cudaMemcpyAsync(to, from, size_t(bytes), kind_of_copy(to, from), stream.cuda()), "cudaMemcpyAsync");
}

void copy_rows(void* to, int64_t to_pitch, const void* from, int64_t from_pitch, int64_t row_bytes, int64_t rows,
               Stream& stream) {
  if (row_bytes == 0 || rows == 0) return;
  choose(stream.device());
  check(cudaMemcpy2DAsync(to, size_t(to_pitch), from, size_t(from_pitch), size_t(row_bytes), size_t(rows),
                          kind_of_copy(to, from), stream.cuda()),
        "cudaMemcpy2DAsync");
}

void fill(void* to, int byte, int64_t bytes, Stream& stream) {
  if (bytes == 0) return;
  choose(stream.device());
  check(cudaMemsetAsync(to, byte, size_t(bytes), stream.cuda()), "cudaMemsetAsync");
}

void synchronize(Stream& stream) {
  CaptureRules::refuse("a wait");
  wait_until(
      "cudaStreamSynchronize", [&] { return cudaStreamQuery(stream.cuda()); },
      [&] { return cudaStreamSynchronize(stream.cuda()); });
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
  CaptureRules::refuse("an event");
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
  CaptureRules::refuse("a look at an event");
  const cudaError_t status = cudaEventQuery(event_);
  if (status == cudaErrorNotReady) return false;
  check(status, "cudaEventQuery");
  return true;
}

void Event::wait() const {
  if (event_ == nullptr) return;
  CaptureRules::refuse("a wait");
  wait_for_event(event_);
}

void Event::hold(Stream& stream) const {
  if (event_ == nullptr) return;
  CaptureRules::refuse("a wait for another stream");
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
  CaptureRules::refuse("a stopwatch");
  choose(stream.device());
  places_ = std::make_shared<Places>();
  check(cudaEventRecord(places_->from, stream.cuda()), "cudaEventRecord");
}
void Stopwatch::stop(Stream& stream) { check(cudaEventRecord(places_->to, stream.cuda()), "cudaEventRecord"); }
double Stopwatch::seconds() const {
  wait_for_event(places_->to);
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, places_->from, places_->to), "cudaEventElapsedTime");
  return double(milliseconds) * 1e-3;
}

struct Graph::Parts {
  cudaGraph_t graph = nullptr;  // of which only one may run: it lives as long
  cudaGraphExec_t runs = nullptr;
  Parts() = default;
  ~Parts() {
    if (runs != nullptr) cudaGraphExecDestroy(runs);
    if (graph != nullptr) cudaGraphDestroy(graph);
  }
  Parts(const Parts&) = delete;
  Parts& operator=(const Parts&) = delete;
};
void Graph::launch(Stream& stream) const {
  CaptureRules::refuse("the launch of a graph");
  choose(stream.device());
  cudaError_t status = cudaGraphLaunch(parts_->runs, stream.cuda());
  if (status == cudaErrorMemoryAllocation) {
    // Its memory was given away (allocate), and the pool holds it.
    cudaGetLastError();
    synchronize(stream);
    trim_pool(stream.device());
    status = cudaGraphLaunch(parts_->runs, stream.cuda());
  }
  check(status, "cudaGraphLaunch");
}

struct Capture::State {
  Stream& stream;
  CaptureRules rules;
  bool is_open = false, is_done = false;

  // The graph, or null.
  cudaError_t end(cudaGraph_t& graph) {
    is_open = false;
    const cudaError_t status = cudaStreamEndCapture(stream.cuda(), &graph);
    rules.end();
    for (void* memory : rules.from_before()) release(memory, stream);
    return status;
  }
};
Capture::Capture(Stream& stream) {
  synchronize(stream);
  choose(stream.device());
  // A graph's memory is not the pool's: what the last step has left there would be held twice.
  trim_pool(stream.device());
  state_ = std::unique_ptr<State>(new State{.stream = stream, .rules = {}, .is_open = false, .is_done = false});
  check(cudaStreamBeginCapture(stream.cuda(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  state_->is_open = true;
}
Capture::~Capture() {
  if (state_->is_done) return;
  cudaGraph_t graph = nullptr;
  if (state_->is_open) state_->end(graph);
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();  // of what is forgotten, or the next check of a launch would find it
}
Graph Capture::finish() {
  const std::string trouble = state_->rules.trouble();
  Graph made;
  made.parts_ = std::make_shared<Graph::Parts>();
  const cudaError_t status = state_->end(made.parts_->graph);
  require(ErrorKind::kDevice, trouble.empty(), "Capture: {}", trouble);
  check(status, "cudaStreamEndCapture");
  check(cudaGraphInstantiate(&made.parts_->runs, made.parts_->graph, 0), "cudaGraphInstantiate");
  check(cudaGraphUpload(made.parts_->runs, state_->stream.cuda()), "cudaGraphUpload");  // takes the memory, or fails
  state_->is_done = true;
  return made;
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
  CaptureRules::refuse("new memory for faults");
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
