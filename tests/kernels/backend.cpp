#include "tests/kernels/backend.h"

#include "core/base/error.h"
#include "kernels/quantize.h"

// Not under the sanitizer, which has an operator new of its own.
#if defined(OCTET_CUDA) && !defined(__SANITIZE_ADDRESS__)
#define OCTET_TESTS_ON_GPU
#endif

#ifdef OCTET_EMULATE_CUDA
#include "kernels/cuda/emulation/block.h"
#endif
#ifdef OCTET_TESTS_ON_GPU
#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <mutex>
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
#ifdef OCTET_EMULATE_AVX512
  // Only what this build is for: the builds that emulate nothing have tested the others.
  std::erase_if(all, [](const Backend& backend) { return backend.isa != Isa::kAvx512; });
#endif
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

namespace {
std::vector<uint8_t> exchanged(const std::vector<uint8_t>& from, int64_t rows, int64_t columns) {
  std::vector<uint8_t> to(from.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[size_t(j * rows + i)] = from[size_t(i * columns + j)];
  }
  return to;
}
}  // namespace
std::vector<uint8_t> column_codes_of(const std::vector<uint8_t>& rows, int64_t P, int64_t C) {
  return kernels::column_codes_shape(P, C, device_here()) == Shape{P, C} ? rows : exchanged(rows, P, C);
}
std::vector<uint8_t> rows_of_column_codes(const std::vector<uint8_t>& codes, int64_t P, int64_t C) {
  return kernels::column_codes_shape(P, C, device_here()) == Shape{P, C} ? codes : exchanged(codes, C, P);
}

}  // namespace octet::test

#ifdef OCTET_TESTS_ON_GPU
// All memory of the test program is managed where there is a GPU, so that kernels may be given any vector. To make and
// free managed memory waits for the GPU, so it is made in large chunks, which are cut into blocks of 2^n bytes.
namespace {
constexpr std::size_t kHeader = 64, kSmallest = 7, kClasses = 48;
constexpr std::size_t kChunk = std::size_t(64) << 20;
struct Free {
  Free* next;
};
std::mutex blocks_mutex;
Free* free_blocks[kClasses] = {};
char *chunk = nullptr, *chunk_end = nullptr;
thread_local bool is_in_cuda = false;  // which may allocate

char* more(std::size_t bytes) {
  void* memory = nullptr;
  if (!is_in_cuda) {
    is_in_cuda = true;
    const bool is_managed = cudaMallocManaged(&memory, bytes, cudaMemAttachGlobal) == cudaSuccess;
    if (!is_managed) memory = nullptr, cudaGetLastError();
    is_in_cuda = false;
  }
  if (memory == nullptr) memory = std::aligned_alloc(kHeader, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return static_cast<char*>(memory);
}
void* allocate(std::size_t bytes) {
  const std::size_t size_class = std::max(std::size_t(std::bit_width(bytes + kHeader - 1)), kSmallest);
  if (size_class >= kClasses) throw std::bad_alloc();
  const std::size_t block = std::size_t(1) << size_class;
  if (is_in_cuda) {  // under the lock already
    char* const memory = static_cast<char*>(std::aligned_alloc(kHeader, block));
    if (memory == nullptr) throw std::bad_alloc();
    *reinterpret_cast<std::size_t*>(memory) = size_class;
    return memory + kHeader;
  }
  const std::lock_guard guard(blocks_mutex);
  char* memory = nullptr;
  if (free_blocks[size_class] != nullptr) {
    memory = reinterpret_cast<char*>(free_blocks[size_class]) - kHeader;
    free_blocks[size_class] = free_blocks[size_class]->next;
  } else if (block >= kChunk) {
    memory = more(block);
  } else {
    if (std::size_t(chunk_end - chunk) < block) chunk = more(kChunk), chunk_end = chunk + kChunk;
    memory = chunk;
    chunk += block;
  }
  *reinterpret_cast<std::size_t*>(memory) = size_class;
  return memory + kHeader;
}
void release(void* memory) {
  if (memory == nullptr || is_in_cuda) return;
  const std::lock_guard guard(blocks_mutex);
  const std::size_t size_class = *reinterpret_cast<std::size_t*>(static_cast<char*>(memory) - kHeader);
  free_blocks[size_class] = new (memory) Free{free_blocks[size_class]};
}
}  // namespace
void* operator new(std::size_t bytes) { return allocate(bytes); }
void* operator new[](std::size_t bytes) { return allocate(bytes); }
void operator delete(void* memory) noexcept { release(memory); }
void operator delete[](void* memory) noexcept { release(memory); }
void operator delete(void* memory, std::size_t) noexcept { release(memory); }
void operator delete[](void* memory, std::size_t) noexcept { release(memory); }
#endif
