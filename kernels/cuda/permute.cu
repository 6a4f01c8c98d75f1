#include "kernels/permute.h"

#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/scan.cuh"

namespace octet::kernels::cuda {
namespace {

constexpr int kPairs = 256;  // of a chunk of the sort, one to a thread

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
                int32_t* pair_of, int64_t pairs, uint32_t K, int E, int num_chunks) {
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
  if (pair_of != nullptr) pair_of[r] = int32_t(pair);
}

template <class Scalar>
__global__ void __launch_bounds__(kRowThreads)
    combine_forward_kernel(const Scalar* rows, int64_t rows_stride, int64_t R, const Scalar* more_rows,
                           int64_t more_rows_stride, const int32_t* row_of, const Scalar* base, int64_t base_stride,
                           Scalar* y, int64_t y_stride, int64_t T, int64_t D, int K, uint32_t pieces) {
  const RowPlace at = row_place(pieces);
  if (at.row >= T) return;
  const int64_t t = at.row, d = at.column;
  Floats8 sum = {};
  if (base != nullptr) sum = load8(base + t * base_stride + d, D - d);
  for (int k = 0; k < K; ++k) {
    const int64_t r = row_of[t * K + k];
    const Floats8 row = load8((r < R ? rows + r * rows_stride : more_rows + (r - R) * more_rows_stride) + d, D - d);
    for (int j = 0; j < kVector; ++j) sum.v[j] = sum.v[j] + row.v[j];
  }
  store8(y + t * y_stride + d, sum, D - d);
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
         counts.data(), args.offsets.data<int64_t>(), args.row_of.data<int32_t>(), args.source.data<int32_t>(),
         args.pairs.data<int32_t>(), pairs, uint32_t(K), E, num_chunks);
}

void gather_rows(const GatherRows& args, Stream& stream) {
  copy_rows("gather_rows", args.x, args.source, args.y, gpu::Fault::kRow, stream, args.skips, args.num_rows);
}

void combine_forward(const CombineForward& args, Stream& stream) {
  const int64_t T = args.y.rows(), D = args.y.cols(), K = args.row_of.cols(), pieces = ceil_div<int64_t>(D, kVector);
  if (D == 0) return;
  visit_float(args.y.dtype(), [&]<class Scalar>() {
    launch("combine_forward", row_grid(T, pieces), kRowThreads, 0, stream, combine_forward_kernel<Scalar>,
           args.rows.data<Scalar>(), args.rows.row_stride(), args.rows.rows(), args.more_rows.data<Scalar>(),
           args.more_rows.row_stride(), args.row_of.data<int32_t>(), args.base.data<Scalar>(), args.base.row_stride(),
           args.y.data<Scalar>(), args.y.row_stride(), T, D, int(K), uint32_t(pieces));
  });
}

}  // namespace octet::kernels::cuda
