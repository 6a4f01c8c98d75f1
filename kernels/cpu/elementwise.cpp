#include "kernels/elementwise.h"

#include "kernels/cpu/isa_headers.h"
//
#include "kernels/cpu/isa_begin.inc"

// Elements that one thread takes at a time: long enough to hide the cost of taking them, a multiple of a vector.
constexpr int64_t kElementwiseGrain = 16384;
constexpr int64_t kSumPiece = 65536;
constexpr int64_t kSquareSumRows = 128;

void add_into(const AddInto& args, Stream& stream) {
  visit_float(args.a.dtype(), [&]<class A>() {
    visit_float(args.b.dtype(), [&]<class B>() {
      visit_float(args.y.dtype(), [&]<class Y>() {
        const A* a = args.a.data<A>();
        const B* b = args.b.data<B>();
        Y* y = args.y.data<Y>();
        stream.parallel_chunks(args.y.num_elements(), kElementwiseGrain, [=](int64_t begin, int64_t end) {
          for_lanes(end - begin, [=](int64_t d, auto lanes) {
            const int64_t i = begin + d;
            lanes.store(y + i, lanes.load(a + i) + lanes.load(b + i));
          });
        });
      });
    });
  });
}

void scale(const Scale& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    Scalar* x = args.x.data<Scalar>();
    const float factor = args.factor;
    stream.parallel_chunks(args.x.num_elements(), kElementwiseGrain, [=](int64_t begin, int64_t end) {
      for_lanes(end - begin,
                [=](int64_t d, auto lanes) { lanes.store(x + begin + d, lanes.load(x + begin + d) * splat(factor)); });
    });
  });
}

void cast(const Cast& args, Stream& stream) {
  const int64_t n = args.x.num_elements();
  if (args.x.dtype() == args.y.dtype()) {
    const int64_t size = size_of(args.x.dtype());
    stream.parallel_chunks(n, kElementwiseGrain, [&](int64_t begin, int64_t end) {
      std::memmove(static_cast<char*>(args.y.raw()) + begin * size,
                   static_cast<const char*>(args.x.raw()) + begin * size, size_t((end - begin) * size));
    });
    return;
  }
  visit_float(args.x.dtype(), [&]<class X>() {
    visit_float(args.y.dtype(), [&]<class Y>() {
      const X* x = args.x.data<X>();
      Y* y = args.y.data<Y>();
      stream.parallel_chunks(n, kElementwiseGrain, [=](int64_t begin, int64_t end) {
        for_lanes(end - begin, [=](int64_t d, auto lanes) { lanes.store(y + begin + d, lanes.load(x + begin + d)); });
      });
    });
  });
}

void square_sums(const SquareSums& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    const Shape& shape = args.x.shape();
    const int64_t G = shape.rank() == 3 ? shape[0] : 1, N = shape.rank() == 1 ? 1 : shape[-2], K = shape.cols();
    const int64_t of_matrix = (N + kSquareSumRows - 1) / kSquareSumRows;
    const Scalar* const x = args.x.data<Scalar>();
    stream.parallel_for(G * of_matrix, [=, sums = args.sums](int64_t s) {
      const int64_t first = s % of_matrix * kSquareSumRows, rows = std::min(kSquareSumRows, N - first);
      const Scalar* const begin = x + (s / of_matrix * N + first) * K;
      f64x16 sum = splat_f64(0.0);
      for_lanes(rows * K, [&](int64_t d, auto lanes) {
        const f64x16 v = widen(lanes.load(begin + d));
        sum = sum + v * v;  // the square of a float32 is exact in float64
      });
      sums[s] = reduce_add(sum);
    });
  });
}

void count_non_finite(const CountNonFinite& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    const int64_t n = args.x.num_elements();
    const Scalar* x = args.x.data<Scalar>();
    std::vector<int64_t> counts(size_t((n + kSumPiece - 1) / kSumPiece));
    stream.parallel_chunks(n, kSumPiece, [&](int64_t begin, int64_t end) {
      int64_t found = 0;
      for_lanes(end - begin, [&](int64_t d, auto lanes) { found += count(is_non_finite(lanes.load(x + begin + d))); });
      counts[size_t(begin / kSumPiece)] = found;
    });
    for (const int64_t found : counts) *args.count += found;
  });
}

#include "kernels/cpu/isa_end.inc"
OCTET_CPU_KERNEL(add_into, AddInto)
OCTET_CPU_KERNEL(scale, Scale)
OCTET_CPU_KERNEL(cast, Cast)
OCTET_CPU_KERNEL(square_sums, SquareSums)
OCTET_CPU_KERNEL(count_non_finite, CountNonFinite)
