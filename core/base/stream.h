// An ordered queue of kernels on one device. On the CPU a kernel has finished when its call returns, and a stream is
// the thread pool that its loops run on.
#pragma once

#include "core/base/device.h"
#include "core/base/thread_pool.h"

namespace octet {

class Stream {
 public:
  explicit Stream(ThreadPool& pool) : pool_(&pool) {}

  Device device() const { return {}; }
  ThreadPool& pool() const { return *pool_; }

  // body(i) for each i of [0, n). The grain is the number of consecutive i that one thread takes at a time; it is
  // part of the call, so that where work is cut never depends on the number of threads.
  template <class Body>
  void parallel_for(int64_t n, int64_t grain, Body&& body) {
    pool_->for_chunks(n, grain, [&body](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i);
    });
  }
  template <class Body>
  void parallel_for(int64_t n, Body&& body) {
    parallel_for(n, 1, static_cast<Body&&>(body));
  }
  // body(begin, end) for consecutive pieces of [0, n), each `grain` long but the last.
  template <class Body>
  void parallel_chunks(int64_t n, int64_t grain, Body&& body) {
    pool_->for_chunks(n, grain, static_cast<Body&&>(body));
  }

 private:
  ThreadPool* pool_;
};

// The stream of the device for this thread.
inline Stream& default_stream(Device = {}) {
  static Stream stream(default_thread_pool());
  return stream;
}

}  // namespace octet
