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
  std::atomic<int64_t> next{0};  // first index that nobody has taken
  std::mutex error_mutex{};
  std::exception_ptr error{};
};

ThreadPool::ThreadPool(int threads) {
  require(threads >= 0, "ThreadPool: {} threads; wanted 0 or more", threads);
  if (threads == 0) threads = usable_cores();
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  generation_.fetch_add(1);
  generation_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::drain(Loop& loop) {
  inside_loop = true;
  for (;;) {
    const int64_t begin = loop.next.fetch_add(loop.grain, std::memory_order_relaxed);
    if (begin >= loop.n) break;
    try {
      loop.call(loop.body, begin, std::min(begin + loop.grain, loop.n));
    } catch (...) {
      const std::lock_guard lock(loop.error_mutex);
      if (!loop.error) loop.error = std::current_exception();
      loop.next.store(loop.n, std::memory_order_relaxed);
    }
  }
  inside_loop = false;
}

void ThreadPool::run(int64_t n, int64_t grain, Call call, void* body) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (inside_loop || workers_.empty() || n <= grain) {
    const bool outer = inside_loop;
    for (int64_t begin = 0; begin < n; begin += grain) call(body, begin, std::min(begin + grain, n));
    inside_loop = outer;
    return;
  }
  const std::lock_guard lock(one_loop_at_a_time_);
  Loop loop{.n = n, .grain = grain, .call = call, .body = body};
  loop_.store(&loop, std::memory_order_seq_cst);
  generation_.fetch_add(1, std::memory_order_seq_cst);
  generation_.notify_all();
  drain(loop);
  loop_.store(nullptr, std::memory_order_seq_cst);  // nobody new enters; wait for those inside
  while (inside_.load(std::memory_order_seq_cst) != 0) spin_pause();
  if (loop.error) std::rethrow_exception(loop.error);
}

void ThreadPool::work() {
  uint32_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_relaxed) == seen; ++spin) spin_pause();
    generation_.wait(seen);
    seen = generation_.load(std::memory_order_seq_cst);
    if (stop_.load()) return;
    inside_.fetch_add(1, std::memory_order_seq_cst);
    if (Loop* loop = loop_.load(std::memory_order_seq_cst)) drain(*loop);
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
