#include "tests/kernels/backend.h"

#include "core/base/error.h"

// Not under the sanitizer, which has an operator new of its own.
#if defined(OCTET_CUDA) && !defined(__SANITIZE_ADDRESS__)
#define OCTET_TESTS_ON_GPU
#endif

#ifdef OCTET_EMULATE_CUDA
#include "kernels/cuda/emulation/block.h"
#endif
#ifdef OCTET_TESTS_ON_GPU
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <new>
#endif

namespace octet::test {
namespace {

Stream* stream_in_use = nullptr;

#ifdef OCTET_TESTS_ON_GPU
bool has_gpu() {
  static const bool found = [] {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  }();
  return found;
}
cudaStream_t gpu_stream() {
  static const cudaStream_t stream = [] {
    cudaStream_t made = nullptr;
    require(ErrorKind::kDevice, cudaStreamCreate(&made) == cudaSuccess, "cudaStreamCreate failed");
    return made;
  }();
  return stream;
}
#endif

}  // namespace

std::vector<Backend> cpu_backends() {
  std::vector<Backend> all;
  for (const Isa isa : supported_isas()) all.push_back({.name = std::string(name_of(isa)), .isa = isa});
  return all;
}
std::vector<Backend> cuda_backends() {
#ifdef OCTET_EMULATE_CUDA
  return {{.name = "cuda, emulated", .is_cuda = true},
          {.name = "cuda, emulated backward", .is_cuda = true, .is_backward = true}};
#elif defined(OCTET_TESTS_ON_GPU)
  if (has_gpu()) return {{.name = "cuda", .is_cuda = true}};
  return {};
#else
  return {};
#endif
}
std::vector<Backend> backends() {
  std::vector<Backend> all = cpu_backends();
  for (const Backend& backend : cuda_backends()) all.push_back(backend);
  return all;
}

UseBackend::UseBackend(const Backend& backend, ThreadPool& pool) : isa_before_(current_isa()), before_(stream_in_use) {
  if (!backend.is_cuda) {
    set_current_isa(backend.isa);
    stream_ = std::make_unique<Stream>(pool);
  } else {
    CUstream_st* stream = nullptr;
#ifdef OCTET_EMULATE_CUDA
    emulation::set_order(backend.is_backward ? emulation::Order::kBackward : emulation::Order::kForward);
#elif defined(OCTET_TESTS_ON_GPU)
    stream = gpu_stream();
#endif
    stream_ = std::make_unique<Stream>(pool, Device{DeviceType::kCuda, 0}, stream);
  }
  stream_in_use = stream_.get();
}
UseBackend::~UseBackend() {
  set_current_isa(isa_before_);
  stream_in_use = before_;
}

Here::~Here() noexcept(false) {
#ifdef OCTET_TESTS_ON_GPU
  if (stream_in_use == nullptr || stream_in_use->device().is_cpu()) return;
  const cudaError_t status = cudaStreamSynchronize(stream_in_use->cuda());
  require(ErrorKind::kDevice, status == cudaSuccess, "a kernel under test: {}", cudaGetErrorString(status));
#endif
}
Here::operator Stream&() const { return stream_in_use == nullptr ? default_stream() : *stream_in_use; }

}  // namespace octet::test

#ifdef OCTET_TESTS_ON_GPU
// All memory of the test program is managed where there is a GPU, so that kernels may be given any vector.
namespace {
void* allocate(std::size_t bytes) {
  void* memory = nullptr;
  if (cudaMallocManaged(&memory, bytes + 1, cudaMemAttachGlobal) == cudaSuccess) return memory;
  cudaGetLastError();
  memory = std::malloc(bytes + 1);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void release(void* memory) {
  if (memory == nullptr) return;
  cudaPointerAttributes attributes{};
  const bool is_known = cudaPointerGetAttributes(&attributes, memory) == cudaSuccess;
  if (is_known && attributes.type == cudaMemoryTypeManaged) {
    cudaFree(memory);
  } else {
    std::free(memory);
  }
}
}  // namespace
void* operator new(std::size_t bytes) { return allocate(bytes); }
void* operator new[](std::size_t bytes) { return allocate(bytes); }
void operator delete(void* memory) noexcept { release(memory); }
void operator delete[](void* memory) noexcept { release(memory); }
void operator delete(void* memory, std::size_t) noexcept { release(memory); }
void operator delete[](void* memory, std::size_t) noexcept { release(memory); }
#endif
