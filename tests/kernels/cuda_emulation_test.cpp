// What an emulated block of threads does, and what it finds in kernels that are wrong (docs/cuda_emulation.md).
#include "kernels/cuda/device.cuh"

#include <catch2/catch.hpp>
#include <memory>

#include "kernels/cuda/ptx/copy_async.cuh"
#include "kernels/cuda/ptx/mma.cuh"

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

std::string fault_of(void (*kernel)(int*)) {
  std::vector<int> x(68, 1);
  try {
    launch("broken", kernels::cuda::blocks(1), 64, 2048, here(), kernel, x.data());
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
  names(early_copy_kernel, "reads what a cp.async of thread");
  names(unwaited_copy_kernel, "reads what a cp.async of thread");
  names(unshared_copy_kernel, "with no barrier in between");
  names(overwritten_copy_kernel, "writes where a cp.async of thread");
  names(misaligned_copy_kernel, "a misaligned cp.async");
  names(misaligned_pieces_kernel, "a misaligned ldmatrix");
  names(half_warp_pieces_kernel, "lanes of a warp wait for each other");
  names(half_warp_mma_kernel, "lanes of a warp wait for each other");
  // The next kernel runs as if nothing had been.
  std::vector<int> x(64);
  launch("sums", kernels::cuda::blocks(1), 64, 0, here(), sums_kernel, x.data());
  CHECK(x[0] == 496 + 2016000);
}

}  // namespace octet::test
