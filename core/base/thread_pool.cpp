#include "core/base/thread_pool.h"

#include <immintrin.h>
#include <sched.h>

#include "core/base/error.h"

namespace octet {
namespace {

thread_local bool inside_loop = false;

void spin_pause() { _mm_pause(); }

// How long a thread looks at a variable before it asks the kernel to be woken: about 20 us, longer than the gap
// between two kernels of a training step and shorter than anyone would notice on an idle machine.
constexpr int kSpins = 2000;

std::atomic<bool> pool_made{false};
int wanted_threads = 0;

}  // namespace

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return int(std::thread::hardware_concurrency());
}

struct ThreadPool::Loop {
  int64_t n, grain;
  Call call;
  void* body;
  std::mutex error_mutex{};
  std::exception_ptr error{};
};

ThreadPool::ThreadPool(int threads) {
  require(threads >= 0, "ThreadPool: {} threads; wanted 0 or more", threads);
  if (threads == 0) threads = usable_cores();
  shares_ = std::vector<Share>(size_t(threads));
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  generation_.fetch_add(1);
  generation_.notify_all();
  for (auto& worker : workers_) worker.join();
}

// The next of the thread's own chunks, or the last of those of the thread that has most left; -1 if there are none.
int64_t ThreadPool::take_chunk(int thread) {
  const auto first_of = [](uint64_t left) { return left >> 32; };
  const auto end_of = [](uint64_t left) { return left & 0xffffffff; };
  std::atomic<uint64_t>& own = shares_[size_t(thread)].left;
  uint64_t left = own.load(std::memory_order_relaxed);
  while (first_of(left) < end_of(left)) {
    if (own.compare_exchange_weak(left, left + (uint64_t(1) << 32), std::memory_order_relaxed)) {
      return int64_t(first_of(left));
    }
  }
  for (;;) {
    std::atomic<uint64_t>* longest = nullptr;
    uint64_t longest_left = 0, most = 0;
    for (Share& share : shares_) {
      left = share.left.load(std::memory_order_relaxed);
      const uint64_t count = end_of(left) - first_of(left);
      if (count > most) longest = &share.left, longest_left = left, most = count;
    }
    if (longest == nullptr) return -1;
    if (longest->compare_exchange_strong(longest_left, longest_left - 1, std::memory_order_relaxed)) {
      return int64_t(end_of(longest_left)) - 1;
    }
  }
}

void ThreadPool::drain(Loop& loop, int thread) {
  inside_loop = true;
  for (int64_t chunk; (chunk = take_chunk(thread)) >= 0;) {
    try {
      const int64_t begin = chunk * loop.grain;
      loop.call(loop.body, begin, std::min(begin + loop.grain, loop.n));
    } catch (...) {
      const std::lock_guard lock(loop.error_mutex);
      if (!loop.error) loop.error = std::current_exception();
      for (Share& share : shares_) share.left.store(0, std::memory_order_relaxed);
    }
  }
  inside_loop = false;
}

void ThreadPool::run(int64_t n, int64_t grain, std::span<const int64_t> ends, Call call, void* body) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (inside_loop || workers_.empty() || n <= grain) {
    for (int64_t begin = 0; begin < n; begin += grain) call(body, begin, std::min(begin + grain, n));
    return;
  }
  const int64_t chunks = (n + grain - 1) / grain, threads = num_threads();
  require(chunks <= int64_t(0xffffffff), "ThreadPool: a loop of {} chunks; at most 2^32 - 1", chunks);
  require(ends.empty() || (int64_t(ends.size()) == threads && ends.back() == chunks),
          "ThreadPool: shares of {} threads, {} chunks in all; wanted {} of {}", ends.size(),
          ends.empty() ? 0 : ends.back(), threads, chunks);
  const std::lock_guard lock(one_loop_at_a_time_);
  Loop loop{.n = n, .grain = grain, .call = call, .body = body};
  for (int64_t t = 0, first = 0; t < threads; ++t) {
    const int64_t end = ends.empty() ? chunks * (t + 1) / threads : ends[size_t(t)];
    shares_[size_t(t)].left.store(uint64_t(first) << 32 | uint64_t(end), std::memory_order_relaxed);
    first = end;
  }
  loop_.store(&loop, std::memory_order_seq_cst);
  generation_.fetch_add(1, std::memory_order_seq_cst);
  generation_.notify_all();
  drain(loop, 0);
  loop_.store(nullptr, std::memory_order_seq_cst);  // nobody new enters; wait for those inside
  while (inside_.load(std::memory_order_seq_cst) != 0) spin_pause();
  if (loop.error) std::rethrow_exception(loop.error);
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_relaxed) == seen; ++spin) spin_pause();
    generation_.wait(seen);
    seen = generation_.load(std::memory_order_seq_cst);
    if (stop_.load()) return;
    inside_.fetch_add(1, std::memory_order_seq_cst);
    if (Loop* loop = loop_.load(std::memory_order_seq_cst)) drain(*loop, thread);
    inside_.fetch_sub(1, std::memory_order_seq_cst);
  }
}

ThreadPool& default_thread_pool() {
  pool_made = true;
  static ThreadPool pool(wanted_threads);
  return pool;
}

void set_num_threads(int threads) {
  require(!pool_made, "set_num_threads: the thread pool is running already; set the number before its first use");
  wanted_threads = threads;
}

}  // namespace octet
