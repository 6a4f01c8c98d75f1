// What kernels/cuda/device.cuh needs where nvcc compiles a kernel; its twin is emulation/device.h.
#pragma once

#include <cuda_runtime.h>

#include "core/base/stream.h"
#include "kernels/cuda/cuda_check.h"

// Before a loop whose body indexes registers by its counter.
#define OCTET_UNROLL _Pragma("unroll")
// Before one whose body is long enough.
#define OCTET_KEEP_LOOP _Pragma("unroll 1")
#define OCTET_SHARED(T, name, count)  \
  __shared__ T name##_storage[count]; \
  const ::octet::kernels::cuda::Shared<T> name(name##_storage, count)

namespace octet::kernels::cuda {

template <class T>
class Shared {
 public:
  __device__ __forceinline__ Shared(T* data, int) : data_(data) {}
  __device__ __forceinline__ T& operator[](int i) const { return data_[i]; }
  __device__ __forceinline__ Shared operator+(int i) const { return Shared(data_ + i, 0); }
  template <class Other>
  __device__ __forceinline__ Shared<Other> as() const {
    return Shared<Other>(reinterpret_cast<Other*>(data_), 0);
  }

 private:
  T* data_;
};
template <class T>
__device__ __forceinline__ Shared<T> dynamic_shared(size_t byte_offset, int count) {
  extern __shared__ __align__(1024) uint4 octet_dynamic_shared[];  // what swizzled tiles want
  return Shared<T>(reinterpret_cast<T*>(reinterpret_cast<char*>(octet_dynamic_shared) + byte_offset), count);
}

// Of dynamic shared memory, as descriptors have it.
__device__ __forceinline__ uint32_t dynamic_shared_address() {
  extern __shared__ __align__(1024) uint4 octet_dynamic_shared[];
  return uint32_t(__cvta_generic_to_shared(octet_dynamic_shared));
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class T>
__device__ __forceinline__ T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
__device__ __forceinline__ unsigned ballot(bool condition) { return __ballot_sync(0xffffffffu, condition); }
__device__ __forceinline__ int lowest_bit(unsigned mask) { return __ffs(int(mask)) - 1; }
__device__ __forceinline__ int count_bits(unsigned mask) { return __popc(mask); }
__device__ __forceinline__ void atomic_add(int64_t* to, int64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}
// Whether *at was `before` and is `after` now.
__device__ __forceinline__ bool atomic_replace(int64_t* at, int64_t before, int64_t after) {
  return atomicCAS(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(before),
                   static_cast<unsigned long long>(after)) == static_cast<unsigned long long>(before);
}
template <class To, class From>
__device__ __forceinline__ To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <class Words>
__device__ __forceinline__ Words load_words(const void* from) {
  return *static_cast<const Words*>(from);
}
template <class Words>
__device__ __forceinline__ void store_words(void* to, Words words) {
  *static_cast<Words*>(to) = words;
}

// Starts a kernel; name is what an error calls it. A grid without blocks is nothing to do. Blocks of a cluster are
// neighbours along x, of which the grid has a multiple.
template <class... Parameters, class... Args>
void launch_clusters(const char* name, int cluster_blocks, dim3 grid, int threads, size_t shared_bytes, Stream& stream,
                     void (*kernel)(Parameters...), Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > (size_t(48) << 10)) {  // above this a kernel must say so
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)), name);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.cuda();
  cudaLaunchAttribute cluster{};
  if (cluster_blocks > 1) {
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = unsigned(cluster_blocks), cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.attrs = &cluster, config.numAttrs = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel, Parameters(args)...), name);
}
template <class... Parameters, class... Args>
void launch(const char* name, dim3 grid, int threads, size_t shared_bytes, Stream& stream,
            void (*kernel)(Parameters...), Args... args) {
  launch_clusters(name, 1, grid, threads, shared_bytes, stream, kernel, args...);
}

}  // namespace octet::kernels::cuda
