// A grid of CUDA thread blocks on the CPU, for tests: docs/cuda_emulation.md. Each block, or cluster of blocks, runs on
// one thread of a pool; its threads are fibers that run one after the other, each until it meets a barrier or ends.
// What a kernel must not do and a GPU does not report is an error here that names the kernel, the block and the thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/base/thread_pool.h"

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline thread_local uint3 threadIdx, blockIdx;
inline thread_local dim3 blockDim, gridDim;

namespace octet::emulation {

// Runs thread() for each thread of each block and returns when all have ended. name lives as long as the call. Clusters
// are of so many blocks along x.
void run_grid(const char* name, int cluster_blocks, dim3 grid, int threads, size_t shared_bytes, ThreadPool& pool,
              const std::function<void()>& thread);

// What has run so far, for tests to see: grids, and clusters of more than one block.
int64_t grids_run();
int64_t clusters_run();

// The order in which threads and blocks get their turn, for all later grids. A result that depends on it is a race.
enum class Order { kForward, kBackward };
void set_order(Order order);

// For the threads of a running block.
void sync_threads(const char* file, int line);
void sync_warp();
// What the 32 lanes of the warp gave, by lane, until the next exchange or barrier but one.
inline constexpr size_t kExchangeBytes = 64;
using Exchange = std::array<std::array<std::byte, kExchangeBytes>, 32>;
const Exchange& exchange(const void* value, size_t bytes);

// Shared memory: `tag` names a declaration, and all threads that pass it get the same place.
std::byte* static_shared(const void* tag, size_t bytes);
std::byte* dynamic_shared(size_t offset, size_t bytes);
// An access of a byte that was never written, that another thread writes, or that another thread read or wrote with no
// barrier in between, fails.
void read_shared(const std::byte* at, size_t bytes);
void write_shared(std::byte* at, size_t bytes);
// Copies to dynamic shared memory that arrive when this thread waits for them, and are seen by others after a barrier.
// Until then an access of their bytes fails. bytes: 4, 8 or 16, the boundary of both places.
void copy_async(size_t to_offset, const std::byte* from, size_t bytes);
void commit_copies();                    // ends a batch of this thread's copies
void wait_for_copies(int most_batches);  // all but the latest most_batches have arrived

// A barrier of some warps of the block, `threads` in all, known by its number.
void sync_some(int number, int threads);
// Barriers in shared memory that count arrivals and bytes (PTX ISA, mbarrier), by their offsets. A phase ends when all
// arrivals and all bytes that were announced have come. What a thread did before it arrived is before what others do
// after they waited for the phase.
void mbarrier_init(size_t offset, uint32_t arrivals);
void mbarrier_arrive(size_t offset, uint32_t bytes_to_come);
void mbarrier_arrive_after_copies(size_t offset);  // once all copies of this thread so far have arrived
void mbarrier_wait(size_t offset, uint32_t parity);
// What this thread wrote, or waited for, is seen from now on by operations of the asynchronous proxy.
void fence_proxy();
// A tile on its way to shared memory, which arrives when no thread can go on without it: as late as it may. Until then
// an access of its bytes fails. Its bytes are counted by the mbarrier.
void load_tile(size_t to_offset, const std::vector<std::byte>& bytes, size_t mbarrier);

// For blocks of a cluster. A barrier of all its threads; one block's memory may be reached by another after it, and
// until that other has told, by a barrier, that it has done with it.
void sync_cluster();
int block_in_cluster();
void mbarrier_arrive_at(int block, size_t offset);  // a block of the cluster
// The same tile to the same place of each block of the set, a bit each, where it is counted by the mbarrier.
void load_tile_to(uint32_t blocks, size_t to_offset, const std::vector<std::byte>& bytes, size_t mbarrier);

// Reads of the asynchronous proxy that go on while the thread does: an operand of a product, or a tile that is stored.
// A write to their bytes fails until the thread has waited, and then until a barrier orders it.
enum class Reader { kProduct, kStore };
void begin_reading(Reader reader, size_t begin, size_t bytes);
void commit_reading(Reader reader);
void wait_for_reading(Reader reader, int most_batches);
// The sums of a product of this thread that goes on: its own are NaN until it has waited. Null: there are none.
const float* sums_in_flight(const float* at);
void put_in_flight(float* at, const float* sums, int count);
// Whether this thread may let the asynchronous proxy read these bytes; fails where not.
void check_async_read(size_t begin, size_t bytes);
// The registers of each thread of this one's warps, as setmaxnreg sets them.
void set_registers(int count);

// Stops the kernel: "NAME: what; block (x, y, z), thread t".
[[noreturn]] void fault(const std::string& what);

}  // namespace octet::emulation
