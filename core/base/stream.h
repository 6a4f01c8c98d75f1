// An ordered queue of kernels on one device. On the CPU a kernel has finished when its call returns, and a stream is
// the thread pool that its loops run on. On a GPU a kernel has only been asked for when its call returns.
#pragma once

#include <span>

#include "core/base/device.h"
#include "core/base/thread_pool.h"

struct CUstream_st;  // what cudaStream_t points to

namespace octet {

class Stream {
 public:
  explicit Stream(ThreadPool& pool) : pool_(&pool) {}
  // On a GPU; the stream outlives this object. The pool is the host's, for an emulated GPU.
  Stream(ThreadPool& pool, Device device, CUstream_st* cuda) : pool_(&pool), device_(device), cuda_(cuda) {}

  Device device() const { return device_; }
  ThreadPool& pool() const { return *pool_; }
  CUstream_st* cuda() const { return cuda_; }  // null on the CPU

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
  // body(i) for each i of [0, ends.back()), of unequal lengths: thread t of the pool begins with ends[t - 1] ...
  // ends[t] - 1.
  template <class Body>
  void parallel_shares(std::span<const int64_t> ends, Body&& body) {
    pool_->for_chunks(ends.back(), 1, ends, [&body](int64_t i, int64_t) { body(i); });
  }
  // body(begin, end) for consecutive pieces of [0, n), each `grain` long but the last.
  template <class Body>
  void parallel_chunks(int64_t n, int64_t grain, Body&& body) {
    pool_->for_chunks(n, grain, static_cast<Body&&>(body));
  }

 private:
  ThreadPool* pool_;
  Device device_;
  CUstream_st* cuda_ = nullptr;
};

// The stream that the tensors of a device are computed on. That of a GPU is there once it was opened
// (kernels/device_runtime.h); before that an Error(kDevice).
Stream& default_stream(Device device = {});
// What opening a GPU leaves for default_stream; null takes it away. The stream outlives its place here.
void set_default_stream(Device device, Stream* stream);

}  // namespace octet
