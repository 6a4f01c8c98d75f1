// What an emulated block of threads does, and what it finds in kernels that are wrong (docs/cuda_emulation.md).
#include "kernels/cuda/device.cuh"

#include <catch2/catch.hpp>

#include "tests/kernels/backend.h"

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

std::string fault_of(void (*kernel)(int*)) {
  std::vector<int> x(68, 1);
  try {
    launch("broken", kernels::cuda::blocks(1), 64, 0, here(), kernel, x.data());
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

TEST_CASE("what a kernel must not do is named with its kernel, block and thread", "[kernels][cuda_emulation]") {
  const Backend backend = GENERATE(from_range(cuda_backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  const auto names = [&](void (*kernel)(int*), const std::string& words) {
    const std::string fault = fault_of(kernel);
    CAPTURE(fault, words);
    CHECK(fault.find("broken: ") == 0);
    CHECK(fault.find(words) != std::string::npos);
    CHECK(fault.find("; block (0, 0, 0), thread ") != std::string::npos);
  };
  names(race_kernel, "with no barrier in between");
  names(rewrite_kernel, "with no barrier in between");
  names(unwritten_kernel, "nobody wrote");
  names(outside_kernel, "element 64 of 64 in shared memory");
  names(divergent_kernel, "waits at __syncthreads");
  names(two_barriers_kernel, "and this thread at line");
  names(half_warp_kernel, "lanes of a warp wait for each other");
  names(misaligned_kernel, "a misaligned load");
  // The next kernel runs as if nothing had been.
  std::vector<int> x(64);
  launch("sums", kernels::cuda::blocks(1), 64, 0, here(), sums_kernel, x.data());
  CHECK(x[0] == 496 + 2016000);
}

}  // namespace octet::test
