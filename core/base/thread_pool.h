// A fixed set of threads that run loops. Work is cut into chunks whose bounds do not depend on the number of threads,
// and each chunk's result goes to its own place, so that a result never depends on the number of threads either.
//
// A thread begins with a share of its own, neighbouring chunks that are the same part of every loop, and when it has
// done them it helps the others, from the end of theirs. So what a loop over rows leaves in a core's caches the next
// loop over rows finds there: a line that two cores have read takes each of them 5 to 7 ns to write again (Zen 4),
// ten times as long as one of its own.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace octet {

class ThreadPool {
 public:
  // threads counts the caller, which works too; 0 means one per core this process may run on.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return int(workers_.size()) + 1; }

  // Calls body(begin, end) for the chunks [0, grain), [grain, 2 grain) ... of [0, n), on any thread, in any order,
  // and returns when all are done. The first exception is thrown here, after the rest has stopped. A loop inside a
  // loop runs on the thread that meets it.
  template <class Body>
  void for_chunks(int64_t n, int64_t grain, Body&& body) {
    for_chunks(n, grain, {}, body);
  }
  // Likewise, where shares of as many chunks would be unequal: thread t begins with the chunks ends[t - 1] ...
  // ends[t] - 1, for each thread of the pool.
  template <class Body>
  void for_chunks(int64_t n, int64_t grain, std::span<const int64_t> ends, Body&& body) {
    run(
        n, grain, ends,
        [](void* b, int64_t begin, int64_t end) { (*static_cast<std::remove_reference_t<Body>*>(b))(begin, end); },
        const_cast<void*>(static_cast<const void*>(std::addressof(body))));
  }

 private:
  using Call = void (*)(void* body, int64_t begin, int64_t end);
  struct Loop;
  // Chunks that nobody has taken yet: the number of the first above that of the end, 32 bits each.
  struct alignas(64) Share {
    std::atomic<uint64_t> left{0};
  };
  void run(int64_t n, int64_t grain, std::span<const int64_t> ends, Call call, void* body);
  void work(int thread);
  void drain(Loop& loop, int thread);
  int64_t take_chunk(int thread);

  std::vector<std::thread> workers_;
  std::vector<Share> shares_;  // of each thread, the caller's first
  std::mutex one_loop_at_a_time_;
  std::atomic<Loop*> loop_{nullptr};
  std::atomic<uint32_t> generation_{0};  // rises when a loop starts; workers wait on it
  std::atomic<int> inside_{0};           // workers that may still look at *loop_
  std::atomic<bool> stop_{false};
};

// Cores that this process may run on.
int usable_cores();

// The process's pool. set_num_threads must come before the first use; later calls throw.
ThreadPool& default_thread_pool();
void set_num_threads(int threads);

}  // namespace octet
