// Running sums over lanes, and the places that follow from a table of counts.
#pragma once

#include "kernels/cuda/device.cuh"

namespace octet::kernels::cuda {

inline constexpr int kScanThreads = 1024;  // of the one block that adds counts up

// The sum of x over the lanes before this one.
template <class Integer>
__device__ __forceinline__ Integer sum_before(Integer x, Integer& total) {
  const int lane = int(threadIdx.x) % kWarp;
  Integer sum = x;
  for (int step = 1; step < kWarp; step *= 2) {
    const Integer other = shuffle(sum, lane >= step ? lane - step : lane);
    if (lane >= step) sum = sum + other;
  }
  total = shuffle(sum, kWarp - 1);
  return sum - x;
}

// A table of counts of E groups from several chunks, at group * group_step + chunk * chunk_step.
struct CountTable {
  const int32_t* counts;
  int64_t group_step, chunk_step;
};
// One block. places [E, chunks]: of each count the sum of those of its group before it; it may be the table. offsets
// [E + 1]: where each group begins.
inline __global__ void __launch_bounds__(kScanThreads)
    place_kernel(CountTable table, int32_t* places, int64_t* offsets, int E, int num_chunks) {
  const auto totals = dynamic_shared<int64_t>(0, E);
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  for (int e = warp; e < E; e += kScanThreads / kWarp) {
    int32_t before = 0;  // there are fewer than 2^31 things to count
    for (int c = 0; c < num_chunks; c += kWarp) {
      const int64_t chunk = c + lane;
      int32_t total;
      const int32_t count = chunk < num_chunks ? table.counts[e * table.group_step + chunk * table.chunk_step] : 0;
      const int32_t place = before + sum_before(count, total);
      if (chunk < num_chunks) places[int64_t(e) * num_chunks + chunk] = place;
      before = before + total;
    }
    if (lane == 0) totals[e] = before;
  }
  __syncthreads();
  if (warp != 0) return;
  int64_t before = 0;
  for (int e = 0; e < E; e += kWarp) {
    int64_t total;
    const int64_t place = before + sum_before(e + lane < E ? int64_t(totals[e + lane]) : int64_t(0), total);
    if (e + lane < E) offsets[e + lane] = place;
    before = before + total;
  }
  if (lane == 0) offsets[E] = before;
}
inline void launch_places(const char* name, const CountTable& table, int32_t* places, int64_t* offsets, int64_t E,
                          int64_t num_chunks, Stream& stream) {
  launch(name, blocks(1), kScanThreads, size_t(E) * sizeof(int64_t), stream, place_kernel, table, places, offsets,
         int(E), int(num_chunks));
}

}  // namespace octet::kernels::cuda
