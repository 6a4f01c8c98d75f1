// What kernels/cuda/device.cuh needs where g++ compiles a kernel: the words of CUDA, and the operations that it wraps,
// over the blocks of block.h.
#pragma once

#include <atomic>
#include <bit>
#include <cstring>
#include <string>
#include <type_traits>

#include "core/base/error.h"
#include "core/base/stream.h"
#include "kernels/cuda/emulation/block.h"
#include "kernels/cuda/emulation/launch.h"
#include "kernels/device_runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define OCTET_UNROLL
#define OCTET_KEEP_LOOP
#define __syncthreads() ::octet::emulation::sync_threads(__FILE__, __LINE__)
#define __syncwarp() ::octet::emulation::sync_warp()
#define OCTET_SHARED(T, name, count)            \
  static const char name##_tag = 0;             \
  const ::octet::kernels::cuda::Shared<T> name( \
      reinterpret_cast<T*>(::octet::emulation::static_shared(&name##_tag, sizeof(T) * (count))), count)

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};

namespace octet::kernels::cuda {

// Shared memory that sees each access.
template <class T>
class Shared {
 public:
  Shared(T* data, int size) : data_(data), size_(size) {}

  class Element {
   public:
    explicit Element(T* at) : at_(at) {}
    operator T() const {
      emulation::read_shared(reinterpret_cast<const std::byte*>(at_), sizeof(T));
      return *at_;
    }
    T operator=(T value) {
      emulation::write_shared(reinterpret_cast<std::byte*>(at_), sizeof(T));
      return *at_ = value;
    }
    T operator=(const Element& other) { return *this = T(other); }
    T operator+=(T value) { return *this = T(*this) + value; }

   private:
    T* at_;
  };
  Element operator[](int i) const {
    if (i < 0 || i >= size_) {
      emulation::fault("element " + std::to_string(i) + " of " + std::to_string(size_) + " in shared memory");
    }
    return Element(data_ + i);
  }
  // The elements from i on.
  Shared operator+(int i) const {
    if (i < 0 || i > size_) {
      emulation::fault("element " + std::to_string(i) + " of " + std::to_string(size_) + " in shared memory");
    }
    return Shared(data_ + i, size_ - i);
  }
  // The same memory as elements of another type.
  template <class Other>
  Shared<Other> as() const {
    return Shared<Other>(reinterpret_cast<Other*>(data_), int(size_ * int64_t(sizeof(T)) / int64_t(sizeof(Other))));
  }

 private:
  T* data_;
  int size_;
};
template <class T>
Shared<T> dynamic_shared(size_t byte_offset, int count) {
  return Shared<T>(reinterpret_cast<T*>(emulation::dynamic_shared(byte_offset, sizeof(T) * size_t(count))), count);
}

inline uint32_t dynamic_shared_address() { return 0; }

namespace detail {
template <class T>
T lane_value(const emulation::Exchange& lanes, int lane) {
  T value;
  std::memcpy(&value, lanes[size_t(lane)].data(), sizeof(T));
  return value;
}
inline int this_lane() { return int(threadIdx.x % 32); }
}  // namespace detail
template <class T>
T shuffle_xor(T value, int mask) {
  return detail::lane_value<T>(emulation::exchange(&value, sizeof value), detail::this_lane() ^ mask);
}
template <class T>
T shuffle(T value, int lane) {
  return detail::lane_value<T>(emulation::exchange(&value, sizeof value), lane);
}
inline unsigned ballot(bool condition) {
  const emulation::Exchange& lanes = emulation::exchange(&condition, sizeof condition);
  unsigned mask = 0;
  for (int lane = 0; lane < 32; ++lane) mask |= unsigned(detail::lane_value<bool>(lanes, lane)) << lane;
  return mask;
}
inline int lowest_bit(unsigned mask) { return std::countr_zero(mask); }
inline int count_bits(unsigned mask) { return std::popcount(mask); }
inline void atomic_add(int64_t* to, int64_t value) { std::atomic_ref(*to).fetch_add(value, std::memory_order_relaxed); }
inline bool atomic_replace(int64_t* at, int64_t before, int64_t after) {
  return std::atomic_ref(*at).compare_exchange_strong(before, after, std::memory_order_relaxed);
}
template <class To, class From>
To bit_cast(From from) {
  return std::bit_cast<To>(from);
}

// 8 or 16 bytes at once.
template <class Words>
Words load_words(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(Words) != 0) emulation::fault("a misaligned load");
  Words words;
  std::memcpy(&words, from, sizeof words);
  return words;
}
template <class Words>
void store_words(void* to, Words words) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(Words) != 0) emulation::fault("a misaligned store");
  std::memcpy(to, &words, sizeof words);
}

template <class... Parameters, class... Args>
void launch_clusters(const char* name, int cluster_blocks, dim3 grid, int threads, size_t shared_bytes, Stream& stream,
                     void (*kernel)(Parameters...), Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  emulation::launch(name, stream, [=, &stream] {
    emulation::run_grid(name, cluster_blocks, grid, threads, shared_bytes, stream.pool(),
                        [&] { kernel(Parameters(args)...); });
  });
}
template <class... Parameters, class... Args>
void launch(const char* name, dim3 grid, int threads, size_t shared_bytes, Stream& stream,
            void (*kernel)(Parameters...), Args... args) {
  launch_clusters(name, 1, grid, threads, shared_bytes, stream, kernel, args...);
}

}  // namespace octet::kernels::cuda
