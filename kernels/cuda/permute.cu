#include "kernels/permute.h"

#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/scan.cuh"

namespace octet::kernels::cuda {
namespace {

constexpr int kPairs = 256;       // of a chunk of the sort, one to a thread
constexpr int kDotThreads = 128;  // a warp to a pair

// A stable counting sort in three steps, each a function of the indices alone: how many pairs of each chunk chose each
// expert, counts [E, chunks]; the place of the first of them; and each pair to its place.
__global__ void __launch_bounds__(kPairs) count_kernel(const int32_t* indices, int32_t* counts, int64_t pairs, int E,
                                                       int num_chunks, gpu::FaultRecord* record) {
  OCTET_SHARED(int32_t, expert, kPairs);
  const int64_t first = int64_t(blockIdx.x) * kPairs;
  const int n = int(pairs - first < kPairs ? pairs - first : kPairs);
  if (int(threadIdx.x) < n) {
    const int32_t e = indices[first + threadIdx.x];
    is_in_range(e, E, gpu::Fault::kExpert, record);
    expert[int(threadIdx.x)] = e;
  }
  __syncthreads();
  for (int e = int(threadIdx.x); e < E; e += kPairs) {
    int count = 0;
    for (int i = 0; i < n; ++i) count += expert[i] == e;
    counts[int64_t(e) * num_chunks + blockIdx.x] = count;
  }
}

__global__ void __launch_bounds__(kPairs)
    sort_kernel(const int32_t* indices, const int32_t* places, const int64_t* offsets, int32_t* row_of, int32_t* source,
                int64_t pairs, uint32_t K, int E, int num_chunks) {
  OCTET_SHARED(int32_t, expert, kPairs);
  const int64_t pair = int64_t(blockIdx.x) * kPairs + threadIdx.x;
  const int i = int(threadIdx.x);
  if (pair < pairs) expert[i] = indices[pair];
  __syncthreads();
  if (pair >= pairs) return;
  const int32_t e = expert[i];
  if (e < 0 || e >= E) {  // no row; a place inside, for those who read it before the host looks
    row_of[pair] = 0;
    return;
  }
  int32_t before = 0;
  for (int j = 0; j < i; ++j) before += expert[j] == e;
  const int32_t r = int32_t(offsets[e]) + places[int64_t(e) * num_chunks + blockIdx.x] + before;
  row_of[pair] = r;
  source[r] = int32_t(uint32_t(pair) / K);
}

template <class Scalar>
__global__ void __launch_bounds__(kRowThreads)
    combine_forward_kernel(const Scalar* rows, int64_t rows_stride, int64_t R, const Scalar* more_rows,
                           int64_t more_rows_stride, const int32_t* row_of, const float* weights, const Scalar* base,
                           int64_t base_stride, Scalar* y, int64_t y_stride, int64_t T, int64_t D, int K,
                           uint32_t pieces) {
  const RowPlace at = row_place(pieces);
  if (at.row >= T) return;
  const int64_t t = at.row, d = at.column;
  Floats8 sum = {};
  if (base != nullptr) sum = load8(base + t * base_stride + d, D - d);
  for (int k = 0; k < K; ++k) {
    const float weight = weights == nullptr ? 1.0f : weights[t * K + k];
    const int64_t r = row_of[t * K + k];
    const Floats8 row = load8((r < R ? rows + r * rows_stride : more_rows + (r - R) * more_rows_stride) + d, D - d);
    for (int j = 0; j < kVector; ++j) sum.v[j] = fmaf(weight, row.v[j], sum.v[j]);
  }
  store8(y + t * y_stride + d, sum, D - d);
}

// A warp for each pair i, of token source[i], or i / K where there is no source, and of row row_of[i], or i. dweights:
// eight columns of a lane, its pieces in order, then the tree of a warp.
template <class Scalar>
__global__ void __launch_bounds__(kDotThreads)
    combine_backward_kernel(const Scalar* dy, int64_t dy_stride, const int32_t* source, const Scalar* rows,
                            int64_t rows_stride, const int32_t* row_of, const float* weights, Scalar* drows,
                            int64_t drows_stride, float* dweights, int64_t pairs, const int64_t* num_rows, int64_t D,
                            uint32_t K) {
  const int64_t pair = int64_t(blockIdx.x) * (kDotThreads / kWarp) + threadIdx.x / kWarp;
  if (pair >= rows_there(num_rows, pairs)) return;
  const int64_t t = source == nullptr ? uint32_t(pair) / K : source[pair];
  const int64_t r = row_of == nullptr ? pair : row_of[pair];
  const int lane = int(threadIdx.x) % kWarp;
  const float weight = weights[pair];
  float dot = 0.0f;
  for (int64_t d = lane * kVector; d < D; d += kWarp * kVector) {
    Floats8 g = load8(dy + t * dy_stride + d, D - d);
    const Floats8 row = load8(rows + r * rows_stride + d, D - d);
    for (int j = 0; j < kVector; ++j) {
      dot = fmaf(g.v[j], row.v[j], dot);
      g.v[j] = weight * g.v[j];
    }
    store8(drows + r * drows_stride + d, g, D - d);
  }
  dot = warp_sum(dot);
  if (lane == 0) dweights[pair] = dot;
}

}  // namespace

void build_permutation(const BuildPermutation& args, Stream& stream) {
  const int64_t T = args.indices.rows(), K = args.indices.cols(), pairs = T * K;
  const int E = int(args.offsets.num_elements() - 1), num_chunks = int(ceil_div<int64_t>(pairs, kPairs));
  Workspace<int32_t> counts("build_permutation", int64_t(E) * num_chunks, stream);
  launch("build_permutation, counts", blocks(num_chunks), kPairs, 0, stream, count_kernel, args.indices.data<int32_t>(),
         counts.data(), pairs, E, num_chunks, gpu::fault_record(stream.device()));
  launch_places("build_permutation, places", {counts.data(), num_chunks, 1}, counts.data(),
                args.offsets.data<int64_t>(), E, num_chunks, stream);
  launch("build_permutation, sort", blocks(num_chunks), kPairs, 0, stream, sort_kernel, args.indices.data<int32_t>(),
         counts.data(), args.offsets.data<int64_t>(), args.row_of.data<int32_t>(), args.source.data<int32_t>(), pairs,
         uint32_t(K), E, num_chunks);
}

void gather_rows(const GatherRows& args, Stream& stream) {
  copy_rows("gather_rows", args.x, args.source, args.y, gpu::Fault::kRow, stream, args.skips);
}

void combine_forward(const CombineForward& args, Stream& stream) {
  const int64_t T = args.y.rows(), D = args.y.cols(), K = args.row_of.cols(), pieces = ceil_div<int64_t>(D, kVector);
  if (D == 0) return;
  visit_float(args.y.dtype(), [&]<class Scalar>() {
    launch("combine_forward", row_grid(T, pieces), kRowThreads, 0, stream, combine_forward_kernel<Scalar>,
           args.rows.data<Scalar>(), args.rows.row_stride(), args.rows.rows(), args.more_rows.data<Scalar>(),
           args.more_rows.row_stride(), args.row_of.data<int32_t>(), args.weights.data<float>(),
           args.base.data<Scalar>(), args.base.row_stride(), args.y.data<Scalar>(), args.y.row_stride(), T, D, int(K),
           uint32_t(pieces));
  });
}

void combine_backward(const CombineBackward& args, Stream& stream) {
  const int64_t pairs = args.dy.rows() * args.row_of.cols();
  visit_float(args.dy.dtype(), [&]<class Scalar>() {
    launch("combine_backward", blocks(ceil_div<int64_t>(pairs, kDotThreads / kWarp)), kDotThreads, 0, stream,
           combine_backward_kernel<Scalar>, args.dy.data<Scalar>(), args.dy.row_stride(),
           static_cast<const int32_t*>(nullptr), args.rows.data<Scalar>(), args.rows.row_stride(),
           args.row_of.data<int32_t>(), args.weights.data<float>(), args.drows.data<Scalar>(), args.drows.row_stride(),
           args.dweights.data<float>(), pairs, static_cast<const int64_t*>(nullptr), args.dy.cols(),
           uint32_t(args.row_of.cols()));
  });
}

void combine_backward_at_rows(const CombineBackwardAtRows& args, Stream& stream) {
  const int64_t R = args.rows.rows();
  visit_float(args.dy.dtype(), [&]<class Scalar>() {
    launch("combine_backward_at_rows", blocks(ceil_div<int64_t>(R, kDotThreads / kWarp)), kDotThreads, 0, stream,
           combine_backward_kernel<Scalar>, args.dy.data<Scalar>(), args.dy.row_stride(), args.source.data<int32_t>(),
           args.rows.data<Scalar>(), args.rows.row_stride(), static_cast<const int32_t*>(nullptr),
           args.weights.data<float>(), args.drows.data<Scalar>(), args.drows.row_stride(), args.dweights.data<float>(),
           R, args.num_rows.data<int64_t>(), args.dy.cols(), 1u);
  });
}

}  // namespace octet::kernels::cuda
