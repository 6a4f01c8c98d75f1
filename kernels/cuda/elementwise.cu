#include "kernels/elementwise.h"

#include "kernels/cuda/device.cuh"

namespace octet::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSquareSumRows = 128;

// Where this thread's eight elements begin, of a grid over flat arrays.
__device__ __forceinline__ int64_t first_element() { return (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kVector; }
dim3 flat_grid(int64_t n) { return blocks(ceil_div<int64_t>(n, kThreads * kVector)); }

template <class A, class B, class Y>
__global__ void __launch_bounds__(kThreads) add_into_kernel(const A* a, const B* b, Y* y, int64_t n) {
  const int64_t i = first_element();
  if (i >= n) return;
  Floats8 sum = load8(a + i, n - i);
  const Floats8 other = load8(b + i, n - i);
  for (int j = 0; j < kVector; ++j) sum.v[j] = sum.v[j] + other.v[j];
  store8(y + i, sum, n - i);
}

template <class Scalar>
__global__ void __launch_bounds__(kThreads) scale_kernel(Scalar* x, float factor, int64_t n) {
  const int64_t i = first_element();
  if (i >= n) return;
  Floats8 product = load8(x + i, n - i);
  for (int j = 0; j < kVector; ++j) product.v[j] = product.v[j] * factor;
  store8(x + i, product, n - i);
}

template <class X, class Y>
__global__ void __launch_bounds__(kThreads) cast_kernel(const X* x, Y* y, int64_t n) {
  const int64_t i = first_element();
  if (i < n) store8(y + i, load8(x + i, n - i), n - i);
}

template <class Words>
__global__ void __launch_bounds__(kThreads) copy_kernel(const Words* x, Words* y, int64_t n) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) store_words(y + i, load_words<Words>(x + i));
}

// A block for each sum: threads in order of columns, then the tree of a block.
template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    square_sums_kernel(const Scalar* x, double* sums, int64_t of_matrix, int64_t N, int64_t K) {
  const int64_t s = blockIdx.x, first = s % of_matrix * kSquareSumRows;
  const int64_t rows = N - first < kSquareSumRows ? N - first : kSquareSumRows, n = rows * K;
  const Scalar* const begin = x + (s / of_matrix * N + first) * K;
  double sum = 0.0;
  for (int64_t i = int64_t(threadIdx.x) * kVector; i < n; i += kThreads * kVector) {
    const Floats8 v = load8(begin + i, n - i);
    for (int j = 0; j < kVector; ++j) sum = sum + double(v.v[j]) * double(v.v[j]);
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) sums[s] = sum;
}

template <class Scalar>
__global__ void __launch_bounds__(kThreads) count_non_finite_kernel(const Scalar* x, int64_t* count, int64_t n) {
  const int64_t i = first_element();
  int found = 0;
  if (i < n) {
    const Floats8 v = load8(x + i, n - i);
    for (int j = 0; j < kVector; ++j) found += (bit_cast<uint32_t>(v.v[j]) & 0x7f800000u) == 0x7f800000u;
  }
  found = block_sum<kThreads>(found);
  if (threadIdx.x == 0 && found != 0) atomic_add(count, found);
}

}  // namespace

void add_into(const AddInto& args, Stream& stream) {
  visit_float(args.a.dtype(), [&]<class A>() {
    visit_float(args.b.dtype(), [&]<class B>() {
      visit_float(args.y.dtype(), [&]<class Y>() {
        const int64_t n = args.y.num_elements();
        launch("add_into", flat_grid(n), kThreads, 0, stream, add_into_kernel<A, B, Y>, args.a.data<A>(),
               args.b.data<B>(), args.y.data<Y>(), n);
      });
    });
  });
}

void scale(const Scale& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    const int64_t n = args.x.num_elements();
    launch("scale", flat_grid(n), kThreads, 0, stream, scale_kernel<Scalar>, args.x.data<Scalar>(), args.factor, n);
  });
}

void cast(const Cast& args, Stream& stream) {
  const int64_t n = args.x.num_elements();
  if (args.x.dtype() == args.y.dtype()) {  // bits, those of a NaN too
    const auto copy = [&]<class Words>(Words) {
      const int64_t words = n * size_of(args.x.dtype()) / int64_t(sizeof(Words));
      launch("cast", blocks(ceil_div<int64_t>(words, kThreads)), kThreads, 0, stream, copy_kernel<Words>,
             args.x.data<Words>(), args.y.data<Words>(), words);
    };
    const auto together = reinterpret_cast<uintptr_t>(args.x.raw()) | reinterpret_cast<uintptr_t>(args.y.raw()) |
                          uintptr_t(n * size_of(args.x.dtype()));
    return together % 16 == 0 ? copy(uint4()) : copy(uint16_t());
  }
  visit_float(args.x.dtype(), [&]<class X>() {
    visit_float(args.y.dtype(), [&]<class Y>() {
      launch("cast", flat_grid(n), kThreads, 0, stream, cast_kernel<X, Y>, args.x.data<X>(), args.y.data<Y>(), n);
    });
  });
}

void square_sums(const SquareSums& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    const Shape& shape = args.x.shape();
    const int64_t G = shape.rank() == 3 ? shape[0] : 1, N = shape.rank() == 1 ? 1 : shape[-2], K = shape.cols();
    const int64_t of_matrix = ceil_div<int64_t>(N, kSquareSumRows);
    launch("square_sums", blocks(G * of_matrix), kThreads, 0, stream, square_sums_kernel<Scalar>, args.x.data<Scalar>(),
           args.sums, of_matrix, N, K);
  });
}

void count_non_finite(const CountNonFinite& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    const int64_t n = args.x.num_elements();
    launch("count_non_finite", flat_grid(n), kThreads, 0, stream, count_non_finite_kernel<Scalar>,
           args.x.data<Scalar>(), args.count, n);
  });
}

}  // namespace octet::kernels::cuda
