// What an emulated block of threads does, and what it finds in kernels that are wrong (docs/cuda_emulation.md).
#include "kernels/cuda/device.cuh"

#include <catch2/catch.hpp>
#include <memory>

#include "kernels/cuda/ptx/cluster.cuh"
#include "kernels/cuda/ptx/copy_async.cuh"
#include "kernels/cuda/ptx/mbarrier.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/tile_copy.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"
#include "kernels/cuda/tile_schedule.h"

#include "tests/kernels/backend.h"
#include "tests/support/numeric.h"

namespace octet::test {
namespace {

using namespace kernels::cuda;

void reverse_kernel(int* x, int n) {
  OCTET_SHARED(int, kept, 64);
  const int t = int(threadIdx.x);
  kept[t] = x[t];
  __syncthreads();
  x[t] = kept[n - 1 - t];
}
void sums_kernel(int* x) {
  const int t = int(threadIdx.x);
  x[t] = warp_sum(t) + block_sum<64>(t) * 1000;
}
void race_kernel(int* x) {
  OCTET_SHARED(int, kept, 64);
  const int t = int(threadIdx.x);
  kept[t] = t;
  __syncthreads();
  kept[t] = 0;
  x[t] = kept[(t + 1) % 64];  // no barrier
}
void rewrite_kernel(int* x) {
  OCTET_SHARED(int, kept, 64);
  const int t = int(threadIdx.x);
  kept[t] = t;
  __syncthreads();
  x[t] = kept[63 - t];
  kept[t] = 0;  // another thread may not have read it yet
}
void unwritten_kernel(int* x) {
  OCTET_SHARED(int, kept, 64);
  x[threadIdx.x] = kept[int(threadIdx.x)];
}
void outside_kernel(int* x) {
  OCTET_SHARED(int, kept, 64);
  kept[int(threadIdx.x) + x[0]] = 1;
}
void divergent_kernel(int* x) {
  if (threadIdx.x < 40) __syncthreads();
  x[threadIdx.x] = 1;
}
void two_barriers_kernel(int* x) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  x[threadIdx.x] = 1;
}
void half_warp_kernel(int* x) {
  if (threadIdx.x % 2 == 0) x[threadIdx.x] = shuffle_xor(1, 2);
}
void misaligned_kernel(int* x) { load_words<uint4>(x + 1); }

// 16 bytes of x to the place of each thread, in two batches.
void copy_twice(const int* x) {
  for (uint32_t batch = 0; batch < 2; ++batch) {
    ptx::copy_async((batch * 64 + threadIdx.x) * 16, x, true);
    ptx::commit_copies();
  }
}
int copied(uint32_t batch, uint32_t thread) { return dynamic_shared<int>((batch * 64 + thread) * 16, 1)[0]; }
void copy_kernel(int* x) {
  copy_twice(x);
  ptx::wait_for_copies<1>();
  x[4 + threadIdx.x] = copied(0, threadIdx.x);  // its own, without a barrier
  ptx::wait_for_copies<0>();
  __syncthreads();
  x[4 + threadIdx.x] += copied(1, 63 - threadIdx.x);
  __syncthreads();
  ptx::copy_async(threadIdx.x * 16, x, false);
  ptx::commit_copies();
  ptx::wait_for_copies<0>();
  x[4 + threadIdx.x] += copied(0, threadIdx.x);
}
void early_copy_kernel(int* x) {
  copy_twice(x);
  ptx::wait_for_copies<1>();
  x[0] = copied(1, threadIdx.x);  // of the batch that may be on its way
}
void unwaited_copy_kernel(int* x) {
  copy_twice(x);
  __syncthreads();
  x[0] = copied(0, 63 - threadIdx.x);
}
void unshared_copy_kernel(int* x) {
  copy_twice(x);
  ptx::wait_for_copies<0>();
  __syncwarp();
  x[0] = copied(0, 63 - threadIdx.x);  // the other warp's: no barrier of the block
}
void overwritten_copy_kernel(int* x) {
  copy_twice(x);
  dynamic_shared<int>(threadIdx.x * 16, 1)[0] = 1;
}
void misaligned_copy_kernel(int* x) { ptx::copy_async(8, x, true); }
void misaligned_pieces_kernel(int*) {
  uint32_t pieces[4];
  ptx::load_pieces(pieces, 8);
}
void half_warp_pieces_kernel(int*) {
  uint32_t pieces[4];
  if (threadIdx.x % 2 == 0) ptx::load_pieces(pieces, 0);
}
void half_warp_mma_kernel(int*) {
  float d[4] = {};
  const uint32_t a[4] = {};
  if (threadIdx.x % 2 == 0) ptx::mma_bf16(d, a, 0, 0);
}

// d [16, 8] = d + a [16, 16] b [16, 8], b given transposed, [8, 16], and as it is, [16, 8].
void mma_kernel(const bfloat16* a, const bfloat16* b_transposed, const bfloat16* b, float* d, float* d_again) {
  const uint32_t lane = threadIdx.x;
  for (uint32_t piece = lane; piece < 32; piece += 32) ptx::copy_async(piece * 16, a + piece * 8, true);
  if (lane < 16) ptx::copy_async(512 + lane * 16, b_transposed + lane * 8, true);
  if (lane < 16) ptx::copy_async(768 + lane * 16, b + lane * 8, true);
  ptx::commit_copies();
  ptx::wait_for_copies<0>();
  __syncthreads();
  uint32_t left[4], right[4], right_again[4];
  ptx::load_pieces(left, lane % 16 * 32 + lane / 16 * 16);
  ptx::load_pieces(right, 512 + lane % 8 * 32 + lane / 8 % 2 * 16);
  ptx::load_pieces_transposed(right_again, 768 + lane % 16 * 16);
  float sum[4], sum_again[4];
  for (uint32_t i = 0; i < 4; ++i) {
    sum[i] = d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
    sum_again[i] = sum[i];
  }
  ptx::mma_bf16(sum, left, right[0], right[1]);
  ptx::mma_bf16(sum_again, left, right_again[0], right_again[1]);
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t at = (lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2;
    d[at] = sum[i], d_again[at] = sum_again[i];
  }
}

// Tiles of 8 rows of 64 numbers, 1024 bytes, and behind room for 8 of them a ring's barriers.
constexpr uint32_t kTileRows = 8, kTileOf = 1024, kBarriers = 32 * 1024, kRingBytes = kBarriers + 64;
MatrixTiles tiles_of_matrix(const bfloat16* x, int64_t rows, int64_t columns, int64_t step) {
  return {.data = x,
          .element_bytes = 2,
          .rows = rows,
          .columns = columns,
          .row_bytes = step * 2,
          .tile_rows = kTileRows,
          .tile_columns = 64};
}
uint32_t full(int stage) { return kBarriers + uint32_t(stage) * 16; }
uint32_t empty(int stage) { return full(stage) + 8; }
void make_barriers(uint32_t readers, bool fences = true) {
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < 2; ++stage) ptx::init_barrier(full(stage), 1), ptx::init_barrier(empty(stage), readers);
    if (fences) ptx::fence_barriers();
  }
  __syncthreads();
}
int number_at(uint32_t tile, uint32_t row, uint32_t column) {
  const uint32_t byte = tile + swizzled_offset(row, column * 2);
  return int(to_float(dynamic_shared<bfloat16>(byte, 1)[0]));
}

// Four rows of three tiles, through a ring of two stages: thread 0 of the first warp brings them, the second adds them
// up.
void ring_kernel(TensorMap map, int* sums) {
  make_barriers(32);
  kernels::cuda::RingPlace<2> at;
  int sum = 0;
  for (int i = 0; i < 12; ++i) {
    if (threadIdx.x == 0) {
      ptx::wait_for_phase(empty(at.stage), at.parity ^ 1);
      ptx::arrive_and_expect(full(at.stage), kTileOf);
      ptx::load_tile(uint32_t(at.stage) * kTileOf, map, i % 3 * 64, i / 3 * int(kTileRows), full(at.stage));
    }
    if (threadIdx.x >= 32) {
      ptx::wait_for_phase(full(at.stage), at.parity);
      for (uint32_t n = threadIdx.x - 32; n < 512; n += 32)
        sum += number_at(uint32_t(at.stage) * kTileOf, n / 64, n % 64);
      ptx::arrive(empty(at.stage));
    }
    at.advance();
  }
  if (threadIdx.x >= 32) sums[threadIdx.x - 32] = sum;
}
// A tile of ones is stored, after the threads of a named barrier wrote it.
void store_kernel(TensorMap map) {
  if (threadIdx.x < 32) return;
  for (uint32_t n = threadIdx.x - 32; n < 512; n += 32)
    dynamic_shared<uint16_t>(swizzled_offset(n / 64, n % 64 * 2), 1)[0] = 0x3f80;
  ptx::fence_proxy_async();
  ptx::sync_some(1, 32);
  if (threadIdx.x == 32) {
    ptx::store_tile(map, 64, 8, 0);
    ptx::commit_stores();
    ptx::wait_for_stores<0>();
  }
}
// Copies that a barrier waits for.
void copies_at_barrier_kernel(int* x) {
  make_barriers(32);
  if (threadIdx.x == 0) ptx::init_barrier(kBarriers + 40, 32), ptx::fence_barriers();
  __syncthreads();
  if (threadIdx.x < 32) {
    ptx::copy_async_word(threadIdx.x * 4, x + threadIdx.x, threadIdx.x < 20);
    ptx::arrive_after_copies(kBarriers + 40);
  } else {
    ptx::wait_for_phase(kBarriers + 40, 0);
    x[threadIdx.x] = dynamic_shared<int>((threadIdx.x - 32) * 4, 1)[0];
  }
}

// Clusters of two blocks of two warps: each brings every other tile for both, through one ring; the first warp of each
// brings, the second adds up.
void make_barriers_of_cluster(uint32_t readers, bool fences = true) {
  make_barriers(readers, fences);
  ptx::sync_cluster();
}
void free_stage(uint32_t barrier) {
  for (int block = 0; block < 2; ++block) ptx::arrive_at(block, barrier);
}
void cluster_ring_kernel(TensorMap map, int* sums) {
  make_barriers_of_cluster(2 * 32);
  kernels::cuda::RingPlace<2> at;
  int sum = 0;
  for (int i = 0; i < 12; ++i) {
    if (threadIdx.x == 0) {
      ptx::wait_for_phase(empty(at.stage), at.parity ^ 1);
      ptx::arrive_and_expect(full(at.stage), kTileOf);
      if (i % 2 == ptx::block_in_cluster()) {
        ptx::load_tile_to(3, uint32_t(at.stage) * kTileOf, map, i % 3 * 64, i / 3 * int(kTileRows), full(at.stage));
      }
    }
    if (threadIdx.x >= 32) {
      ptx::wait_for_phase(full(at.stage), at.parity);
      for (uint32_t n = threadIdx.x - 32; n < 512; n += 32)
        sum += number_at(uint32_t(at.stage) * kTileOf, n / 64, n % 64);
      free_stage(empty(at.stage));
    }
    at.advance();
  }
  if (threadIdx.x >= 32) sums[blockIdx.x * 32 + threadIdx.x - 32] = sum;
  ptx::sync_cluster();
}

// Each does one thing wrong.
alignas(16) const bfloat16 numbers[64 * 64] = {};
void load_numbers(uint32_t to, int stage = 0) {
  ptx::load_tile(to, encode(tiles_of_matrix(numbers, 64, 64, 64)), 0, 0, full(stage));
}
void load_operands() {  // 64 by 16 and 128 by 16, by thread 0
  if (threadIdx.x != 0) return;
  ptx::arrive_and_expect(full(0), 24 * kTileOf);
  for (uint32_t i = 0; i < 24; ++i) load_numbers(i * kTileOf);
}
void multiply_operands(float (&d)[64]) {
  ptx::wgmma_fence();
  ptx::wgmma_bf16(d, wgmma_descriptor(0), wgmma_descriptor(8 * kTileOf), false);
  ptx::wgmma_commit();
}
// Of clusters of two blocks.
void load_for_both(uint32_t to, int stage = 0) {
  ptx::load_tile_to(3, to, encode(tiles_of_matrix(numbers, 64, 64, 64)), 0, 0, full(stage));
}
bool is_first(int block) { return threadIdx.x == 0 && ptx::block_in_cluster() == block; }
void unmet_arrival_kernel(int*) {
  make_barriers(1);
  if (is_first(0)) ptx::arrive_at(1, empty(0));  // which may not have made it
  ptx::sync_cluster();
}
void unmet_tile_kernel(int*) {
  make_barriers(1);
  if (is_first(1)) ptx::arrive_and_expect(full(0), kTileOf), load_for_both(0);
  if (is_first(0)) ptx::arrive_and_expect(full(0), kTileOf);
  ptx::wait_for_phase(full(0), 0);
  ptx::sync_cluster();
}
void unfenced_peer_kernel(int*) {
  make_barriers_of_cluster(1, /*fences=*/false);
  if (is_first(0)) ptx::arrive_at(1, empty(0));
  ptx::sync_cluster();
}
void early_end_kernel(int*) {
  make_barriers_of_cluster(1);
  if (is_first(0)) ptx::arrive_at(1, empty(0));  // where it may have ended
}
void late_arrival_kernel(int*) {
  make_barriers_of_cluster(2);
  if (is_first(1)) ptx::arrive_at(0, empty(0));
  if (ptx::block_in_cluster() == 1) return;
  if (threadIdx.x == 0) ptx::arrive(empty(0));
  ptx::wait_for_phase(empty(0), 0);
  if (threadIdx.x == 0) ptx::arrive_at(1, empty(0));  // it does not wait
}
void end_before_tile_kernel(int*) {
  make_barriers_of_cluster(1);
  if (is_first(0)) {
    ptx::arrive_and_expect(full(0), kTileOf), load_for_both(0);
    ptx::wait_for_phase(full(0), 0);
  }
}
void unwaited_tile_kernel(int*) {
  make_barriers_of_cluster(1);
  if (is_first(0)) {
    ptx::arrive_and_expect(full(0), kTileOf), load_for_both(0);
    ptx::wait_for_phase(full(0), 0);
    ptx::arrive_and_expect(full(1), kTileOf), load_numbers(kTileOf, 1);
    ptx::wait_for_phase(full(1), 0);
  }
  ptx::sync_cluster();  // block 1 does not know that its own has come
}
// Tiles come to both, block 1 uses them as use() says, and block 0 brings another, told by one thread of block 1.
template <class Use>
void rewrite_at_peer(Use use) {
  make_barriers_of_cluster(1);
  if (threadIdx.x == 0) ptx::arrive_and_expect(full(0), 24 * kTileOf);
  for (uint32_t i = 0; i < 24 && is_first(0); ++i) load_for_both(i * kTileOf);
  ptx::wait_for_phase(full(0), 0);
  const auto tell = [] {
    if (threadIdx.x == 0) ptx::arrive_at(0, empty(0));
  };
  if (ptx::block_in_cluster() == 1) use(tell);
  if (threadIdx.x == 0) ptx::arrive_and_expect(full(1), kTileOf);
  if (is_first(0)) ptx::wait_for_phase(empty(0), 0);
  if (ptx::block_in_cluster() == 0) {  // late
    __syncthreads();
    __syncthreads();
  }
  if (is_first(0)) load_for_both(8 * kTileOf, 1);
  ptx::wait_for_phase(full(1), 0);
  ptx::sync_cluster();
}
void read_second(int* x) {
  if (threadIdx.x >= 32) x[threadIdx.x] = number_at(8 * kTileOf, 0, 0);
}
void told_kernel(int* x) {  // what is right
  rewrite_at_peer([&](auto tell) { read_second(x), __syncthreads(), tell(); });
}
void told_early_kernel(int* x) {
  rewrite_at_peer([&](auto tell) { read_second(x), tell(); });
}
void told_before_barrier_kernel(int* x) {
  rewrite_at_peer([&](auto tell) { tell(), read_second(x), __syncthreads(); });
}
void product_at_peer_kernel(int*) {
  float d[64];
  rewrite_at_peer([&](auto tell) { multiply_operands(d), ptx::wgmma_wait(), tell(); });
}
void product_before_barrier_at_peer_kernel(int*) {
  float d[64];
  rewrite_at_peer([&](auto tell) { tell(), multiply_operands(d), ptx::wgmma_wait(), __syncthreads(); });
}
void product_in_flight_at_peer_kernel(int*) {
  float d[64];
  rewrite_at_peer([&](auto tell) {
    multiply_operands(d), tell();
    for (int i = 0; i < 4; ++i) __syncthreads();
    ptx::wgmma_wait();
  });
}
void half_cluster_kernel(int*) {
  if (ptx::block_in_cluster() == 1) ptx::sync_cluster();
}
void two_cluster_barriers_kernel(int*) {
  if (threadIdx.x < 32) ptx::sync_cluster();
  __syncthreads();
}
void block_beyond_kernel(int*) {
  make_barriers_of_cluster(1);
  if (is_first(0)) ptx::arrive_at(2, empty(0));
}
void early_tile_kernel(int* x) {
  make_barriers(1);
  if (threadIdx.x == 0) ptx::arrive_and_expect(full(0), kTileOf), load_numbers(0), x[0] = number_at(0, 0, 0);
}
void other_barrier_kernel(int* x) {
  make_barriers(1);
  if (threadIdx.x == 0) ptx::arrive_and_expect(full(0), kTileOf), load_numbers(0);
  if (threadIdx.x == 32) ptx::copy_async_word(2 * kTileOf, x, true), ptx::arrive_after_copies(full(1));
  if (threadIdx.x == 64) ptx::wait_for_phase(full(1), 0), x[0] = number_at(0, 0, 0);
}
void missing_bytes_kernel(int*) {
  make_barriers(1);
  if (threadIdx.x == 0) ptx::arrive_and_expect(full(0), kTileOf + 16), load_numbers(0);
  ptx::wait_for_phase(full(0), 0);
}
void missing_arrival_kernel(int*) {
  make_barriers(2);
  if (threadIdx.x == 0) ptx::arrive(empty(0));
  ptx::wait_for_phase(empty(0), 0);
}
void extra_arrival_kernel(int*) {
  make_barriers(1);
  if (threadIdx.x == 0) ptx::arrive_and_expect(full(0), 16), ptx::arrive(full(0));
}
void no_barrier_kernel(int*) { ptx::arrive(full(0)); }
void unfenced_barrier_kernel(int*) {
  make_barriers(1, /*fences=*/false);
  if (threadIdx.x == 0) ptx::arrive_and_expect(full(0), kTileOf), load_numbers(0);
}
void barrier_as_memory_kernel(int* x) {
  make_barriers(1);
  x[0] = dynamic_shared<int>(full(0), 1)[0];
}
void rewritten_tile_kernel(int* x) {
  make_barriers(1);
  if (threadIdx.x == 0) ptx::arrive_and_expect(full(0), kTileOf), load_numbers(0);
  if (threadIdx.x >= 32) {
    ptx::wait_for_phase(full(0), 0);
    x[0] = number_at(0, 0, 0);
  } else if (threadIdx.x == 0) {
    ptx::wait_for_phase(full(0), 0);
    load_numbers(0, 1);  // the other warps have not said that they read it
  }
}
void product_in_flight_kernel(int*) {
  make_barriers(1);
  load_operands();
  ptx::wait_for_phase(full(0), 0);
  float d[64];
  multiply_operands(d);
  if (threadIdx.x == 0) load_numbers(8 * kTileOf, 1);
  ptx::wgmma_wait();
}
void product_without_barrier_kernel(int*) {
  make_barriers(1);
  load_operands();
  ptx::wait_for_phase(full(0), 0);
  float d[64];
  multiply_operands(d);
  ptx::wgmma_wait();
  __syncwarp();
  if (threadIdx.x == 0) load_numbers(8 * kTileOf, 1);  // other warps may still read it
}
void early_sums_kernel(int* x) {
  make_barriers(1);
  load_operands();
  ptx::wait_for_phase(full(0), 0);
  float d[64];
  multiply_operands(d);
  if (d[0] != d[0]) x[1] = 7;  // what it is before the wait
  ptx::wgmma_wait();
  if (d[0] == 0.0f) x[0] = 7;
  __syncthreads();
  emulation::fault("sums " + std::to_string(x[1]) + " and " + std::to_string(x[0]));
}
void unfenced_operand_kernel(int*) {
  for (uint32_t i = threadIdx.x; i < 24 * 256; i += 128) dynamic_shared<int>(i * 4, 1)[0] = 0;
  __syncthreads();
  float d[64];
  multiply_operands(d);
  ptx::wgmma_wait();
}
void unfenced_store_kernel(int*) {
  static bfloat16 to[64 * 64];
  for (uint32_t i = threadIdx.x; i < 256; i += 128) dynamic_shared<int>(i * 4, 1)[0] = 0;
  __syncthreads();
  if (threadIdx.x == 0) ptx::store_tile(encode(tiles_of_matrix(to, 64, 64, 64)), 0, 0, 0);
}
void reused_store_kernel(int*) {
  static bfloat16 to[64 * 64];
  for (uint32_t i = threadIdx.x; i < 256; i += 128) dynamic_shared<int>(i * 4, 1)[0] = 0;
  ptx::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x != 0) return;
  ptx::store_tile(encode(tiles_of_matrix(to, 64, 64, 64)), 0, 0, 0);
  ptx::commit_stores();
  dynamic_shared<int>(0, 1)[0] = 1;
}
void unwaited_store_kernel(int*) {
  static bfloat16 to[64 * 64];
  for (uint32_t i = threadIdx.x; i < 256; i += 128) dynamic_shared<int>(i * 4, 1)[0] = 0;
  ptx::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) ptx::store_tile(encode(tiles_of_matrix(to, 64, 64, 64)), 0, 0, 0), ptx::commit_stores();
}
void half_named_barrier_kernel(int*) {
  if (threadIdx.x < 32) ptx::sync_some(1, 64);
}
void many_registers_kernel(int*) { ptx::take_registers<256>(), ptx::keep_registers<240>(); }
void odd_registers_kernel(int*) { ptx::keep_registers<20>(); }

std::string fault_of(void (*kernel)(int*), int blocks, int threads, size_t shared_bytes) {
  std::vector<int> x(132, 1);
  try {
    launch_clusters("broken", blocks, kernels::cuda::blocks(blocks), threads, shared_bytes, here(), kernel, x.data());
  } catch (const Error& error) {
    return error.report().what;
  }
  return "";
}

}  // namespace

TEST_CASE("threads of a block meet at barriers and exchange numbers", "[kernels][cuda_emulation]") {
  const Backend backend = GENERATE(from_range(cuda_backends()));
  const UseBackend use(backend);
  std::vector<int> x(64), wanted(64);
  for (int i = 0; i < 64; ++i) x[size_t(i)] = i, wanted[size_t(i)] = 63 - i;
  launch("reverse", kernels::cuda::blocks(1), 64, 0, here(), reverse_kernel, x.data(), 64);
  CHECK(x == wanted);
  launch("sums", kernels::cuda::blocks(1), 64, 0, here(), sums_kernel, x.data());
  for (int i = 0; i < 64; ++i) wanted[size_t(i)] = (i < 32 ? 496 : 1520) + 2016000;
  CHECK(x == wanted);
  launch("nothing", kernels::cuda::blocks(0), 64, 0, here(), sums_kernel, static_cast<int*>(nullptr));
}

TEST_CASE("asynchronous copies arrive when they are waited for", "[kernels][cuda_emulation]") {
  const Backend backend = GENERATE(from_range(cuda_backends()));
  const UseBackend use(backend);
  alignas(16) static int x[68];
  std::fill(std::begin(x), std::end(x), 0);
  x[0] = 7;
  launch("copy", kernels::cuda::blocks(1), 64, 2048, here(), copy_kernel, static_cast<int*>(x));
  for (int i = 4; i < 68; ++i) CHECK(x[i] == 14);  // and the zeros of a copy of nothing
}

TEST_CASE("the pieces of a warp multiply as matrices do", "[kernels][cuda_emulation]") {
  const Backend backend = GENERATE(from_range(cuda_backends()));
  const UseBackend use(backend);
  struct alignas(16) Operands {
    bfloat16 a[16 * 16], b_transposed[8 * 16], b[16 * 8];
  };
  const auto operands = std::make_unique<Operands>();
  std::vector<float> d(16 * 8), d_again(16 * 8);
  Doubles wanted(16 * 8);
  const auto number = [](int i) { return float(i * 37 % 29 - 14); };  // small integers: every sum is exact
  for (int i = 0; i < 256; ++i) operands->a[i] = bfloat16(number(i));
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < 8; ++n)
      operands->b[k * 8 + n] = operands->b_transposed[n * 16 + k] = bfloat16(number(5 * k + n));
  }
  for (int i = 0; i < 128; ++i) {
    d[size_t(i)] = number(3 * i);
    wanted[size_t(i)] = number(3 * i);
    for (int k = 0; k < 16; ++k) wanted[size_t(i)] += double(number(i / 8 * 16 + k)) * double(number(5 * k + i % 8));
  }
  launch("mma", kernels::cuda::blocks(1), 32, 1024, here(), mma_kernel, operands->a, operands->b_transposed,
         operands->b, d.data(), d_again.data());
  CHECK(doubles(d) == wanted);
  CHECK(doubles(d_again) == wanted);
}

TEST_CASE("tiles go through a ring of stages, zeros outside of the matrix", "[kernels][cuda_emulation]") {
  const Backend backend = GENERATE(from_range(cuda_backends()));
  const UseBackend use(backend);
  const int rows = 27, columns = 150, step = 152;
  std::vector<bfloat16> x(size_t(rows * step), bfloat16(1000.0f));
  int wanted = 0, sum = 0;
  for (int i = 0; i < rows * columns; ++i) {
    x[size_t(i / columns * step + i % columns)] = bfloat16(float(i % 113));
    wanted += i % 113;
  }
  std::vector<int> sums(32);
  launch("ring", kernels::cuda::blocks(1), 64, kRingBytes, here(), ring_kernel,
         encode(tiles_of_matrix(x.data(), rows, columns, step)), sums.data());
  for (const int one : sums) sum += one;
  CHECK(sum == wanted);
}

TEST_CASE("blocks of a cluster bring tiles for each other", "[kernels][cuda_emulation]") {
  const Backend backend = GENERATE(from_range(cuda_backends()));
  const UseBackend use(backend);
  const int clusters = 3, rows = 27, columns = 150, step = 152;
  std::vector<bfloat16> x(size_t(rows * step), bfloat16(1000.0f));
  int wanted = 0;
  for (int i = 0; i < rows * columns; ++i) {
    x[size_t(i / columns * step + i % columns)] = bfloat16(float(i % 113));
    wanted += i % 113;
  }
  std::vector<int> sums(size_t(clusters) * 64);
  launch_clusters("ring", 2, kernels::cuda::blocks(2 * clusters), 64, kRingBytes, here(), cluster_ring_kernel,
                  encode(tiles_of_matrix(x.data(), rows, columns, step)), sums.data());
  for (int block = 0; block < 2 * clusters; ++block) {
    int sum = 0;
    for (int i = 0; i < 32; ++i) sum += sums[size_t(block * 32 + i)];
    CHECK(sum == wanted);
  }
  CHECK_THROWS_AS(launch_clusters("odd", 2, kernels::cuda::blocks(3), 64, 0, here(), sums_kernel, sums.data()), Error);
}

TEST_CASE("a tile is stored but for what lies outside of the matrix", "[kernels][cuda_emulation]") {
  const Backend backend = GENERATE(from_range(cuda_backends()));
  const UseBackend use(backend);
  const int rows = 11, columns = 70, step = 80;
  std::vector<bfloat16> y(size_t((rows + 2) * step));
  launch("store", kernels::cuda::blocks(1), 64, kTileOf, here(), store_kernel,
         encode(tiles_of_matrix(y.data(), rows, columns, step)));
  int wrong = 0;
  for (int i = 0; i < (rows + 2) * step; ++i) {
    const bool is_inside = i / step >= 8 && i / step < rows && i % step >= 64 && i % step < columns;
    wrong += float(y[size_t(i)]) != (is_inside ? 1.0f : 0.0f);
  }
  CHECK(wrong == 0);
}

TEST_CASE("copies arrive at the barrier that waits for them", "[kernels][cuda_emulation]") {
  const Backend backend = GENERATE(from_range(cuda_backends()));
  const UseBackend use(backend);
  std::vector<int> x(64, 9);
  launch("copies", kernels::cuda::blocks(1), 64, kRingBytes, here(), copies_at_barrier_kernel, x.data());
  for (int i = 0; i < 32; ++i) CHECK(x[size_t(32 + i)] == (i < 20 ? 9 : 0));
}

TEST_CASE("what a kernel must not do is named with its kernel, block and thread", "[kernels][cuda_emulation]") {
  const Backend backend = GENERATE(from_range(cuda_backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  int blocks = 1, threads = 64;
  size_t shared_bytes = 2048;
  const auto names = [&](void (*kernel)(int*), const std::string& forward_words,
                         const std::string& backward_words = {}) {
    const std::string words = backend.is_backward && !backward_words.empty() ? backward_words : forward_words;
    const std::string fault = fault_of(kernel, blocks, threads, shared_bytes);
    CAPTURE(fault, words);
    CHECK(fault.find("broken: ") == 0);
    CHECK(fault.find(words) != std::string::npos);
    const bool is_of_second = fault.find("; block (1, 0, 0), thread ") != std::string::npos;
    CHECK((is_of_second ? blocks == 2 : fault.find("; block (0, 0, 0), thread ") != std::string::npos));
  };
  names(race_kernel, "with no barrier in between");
  names(rewrite_kernel, "with no barrier in between");
  names(unwritten_kernel, "nobody wrote");
  names(outside_kernel, "element 64 of 64 in shared memory");
  names(divergent_kernel, "waits at __syncthreads");
  names(two_barriers_kernel, "and this thread at line");
  names(half_warp_kernel, "lanes of a warp wait for each other");
  names(misaligned_kernel, "a misaligned load");
  names(early_copy_kernel, "reads what a cp.async of thread");
  names(unwaited_copy_kernel, "reads what a cp.async of thread");
  names(unshared_copy_kernel, "with no barrier in between");
  names(overwritten_copy_kernel, "writes where a cp.async of thread");
  names(misaligned_copy_kernel, "a misaligned cp.async");
  names(misaligned_pieces_kernel, "a misaligned ldmatrix");
  names(half_warp_pieces_kernel, "lanes of a warp wait for each other");
  names(half_warp_mma_kernel, "lanes of a warp wait for each other");
  threads = 128, shared_bytes = kRingBytes;
  names(early_tile_kernel, "reads what a tile on its way brings");
  names(other_barrier_kernel, "reads what arrived, and has not waited for it");
  names(missing_bytes_kernel, "lacks 0 arrivals and 16 bytes");
  names(missing_arrival_kernel, "lacks 1 arrivals and 0 bytes");
  names(extra_arrival_kernel, "once more than its phase has arrivals");
  names(no_barrier_kernel, "no mbarrier is at byte");
  names(unfenced_barrier_kernel, "an mbarrier that was not fenced");
  names(barrier_as_memory_kernel, "reads an mbarrier as memory");
  names(rewritten_tile_kernel, "reads what a tile on its way brings",
        "writes what another thread read, with no barrier");
  names(product_in_flight_kernel, "writes where a product in flight of thread");
  names(product_without_barrier_kernel, "writes where a product");
  names(early_sums_kernel, "sums 7 and 7");
  names(unfenced_operand_kernel, "no fence.proxy.async in between");
  names(unfenced_store_kernel, "no fence.proxy.async in between");
  names(reused_store_kernel, "writes where a store of a tile of thread");
  names(unwaited_store_kernel, "ends while what it asked for reads shared memory");
  names(half_named_barrier_kernel, "waits for ever at barrier 1");
  names(odd_registers_kernel, "setmaxnreg 20; wanted 24 to 256");
  blocks = 2;
  const std::string no_barrier = "no barrier since its mbarrier.init";
  const std::string ends = "its block ends and does not know that thread 0 of block 0 has done with it";
  const std::string has_ended = "block 1 of the cluster, which has ended";
  const std::string is_coming = "its block ends while a tile is on its way to it";
  const std::string is_read = "writes what another thread read, with no barrier in between";
  names(unmet_arrival_kernel, no_barrier);
  names(unmet_tile_kernel, no_barrier);
  names(unfenced_peer_kernel, "arrives from another block at an mbarrier that was not fenced");
  names(early_end_kernel, ends, has_ended);
  names(late_arrival_kernel, has_ended);
  names(end_before_tile_kernel, is_coming, has_ended);
  names(unwaited_tile_kernel, "its block ends and has not waited for a tile that came to it");
  CHECK(fault_of(told_kernel, blocks, threads, shared_bytes).empty());
  names(told_early_kernel, is_read);
  names(told_before_barrier_kernel, is_read);
  names(product_at_peer_kernel, "writes where a product of thread");
  names(product_before_barrier_at_peer_kernel, "writes where a product of thread");
  names(product_in_flight_at_peer_kernel, "writes where a product in flight of thread");
  names(half_cluster_kernel, "waits at the barrier of the cluster, and this thread has ended");
  names(two_cluster_barriers_kernel, "and this thread waits at");
  names(block_beyond_kernel, "block 2 of a cluster of 2");
  blocks = 1, threads = 512;
  names(many_registers_kernel, "registers after setmaxnreg; a block has 65536");
  // The next kernel runs as if nothing had been.
  std::vector<int> x(64);
  launch("sums", kernels::cuda::blocks(1), 64, 0, here(), sums_kernel, x.data());
  CHECK(x[0] == 496 + 2016000);
}

}  // namespace octet::test
