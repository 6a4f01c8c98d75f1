#include "kernels/rope.h"

#include "kernels/cuda/rows.cuh"

namespace octet::kernels::cuda {
namespace {

// Eight pairs of a head to a thread in the half layout, four in the interleaved one; the last may be fewer.
template <class Scalar, bool kHalves>
__global__ void __launch_bounds__(kRowThreads)
    rope_kernel(Scalar* x, int64_t stride, const int32_t* positions, const float* cos_sin, int64_t table_stride,
                int64_t T, int heads, int head_dim, float direction) {
  const int half = head_dim / 2;
  const uint32_t of_head = uint32_t(ceil_div(kHalves ? half : head_dim, kVector));
  const RowPlace at = row_place(uint32_t(heads) * of_head, 1);
  if (at.row >= T) return;
  const int head = int(uint32_t(at.column) / of_head), i = int(uint32_t(at.column) % of_head) * kVector;
  Scalar* const from = x + at.row * stride + int64_t(head) * head_dim + i;
  const float* const table = cos_sin + positions[at.row] * table_stride;
  if constexpr (kHalves) {
    const int n = half - i;
    Floats8 a = load8(from, n), b = load8(from + half, n);
    const Floats8 low = load8(table + 2 * i, 2 * n), high = load8(table + 2 * i + kVector, 2 * n - kVector);
    for (int j = 0; j < kVector; ++j) {
      const float c = j < 4 ? low.v[2 * j % 8] : high.v[2 * j % 8];
      const float s = direction * (j < 4 ? low.v[2 * j % 8 + 1] : high.v[2 * j % 8 + 1]);
      const float kept = a.v[j];
      a.v[j] = fmaf(kept, c, -(b.v[j] * s));
      b.v[j] = fmaf(b.v[j], c, kept * s);
    }
    store8(from, a, n);
    store8(from + half, b, n);
  } else {
    const int n = head_dim - i;
    Floats8 v = load8(from, n);
    const Floats8 of_pair = load8(table + i, n);
    for (int j = 0; j < kVector; j += 2) {
      const float c = of_pair.v[j], s = direction * of_pair.v[j + 1];
      const float a = v.v[j], b = v.v[j + 1];
      v.v[j] = fmaf(a, c, b * -s);
      v.v[j + 1] = fmaf(b, c, a * s);
    }
    store8(from, v, n);
  }
}

}  // namespace

void rope(const Rope& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    const int head_dim = int(args.head_dim), heads = int(args.x.cols() / args.head_dim);
    if (heads == 0) return;
    const bool halves = args.layout == RopeLayout::kHalf;
    const int64_t of_head = ceil_div(halves ? head_dim / 2 : head_dim, kVector);
    launch("rope", row_grid(args.x.rows(), heads * of_head), kRowThreads, 0, stream,
           halves ? rope_kernel<Scalar, true> : rope_kernel<Scalar, false>, args.x.data<Scalar>(), args.x.row_stride(),
           args.positions.data<int32_t>(), args.cos_sin.data<float>(), args.cos_sin.row_stride(), args.x.rows(), heads,
           head_dim, args.inverse ? -1.0f : 1.0f);
  });
}

}  // namespace octet::kernels::cuda
