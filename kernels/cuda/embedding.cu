#include "kernels/embedding.h"

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/rows.cuh"

namespace octet::kernels::cuda {
namespace {

constexpr int kThreads = 128;

// A block for each token; that of the first token with an id adds the rows of all tokens with it, in order, so that no
// two blocks write the same row.
template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    embedding_backward_kernel(const int32_t* ids, const Scalar* dy, int64_t dy_stride, float* dweight,
                              int64_t dweight_stride, int64_t V, int64_t T, int64_t D) {
  OCTET_SHARED(uint32_t, found, kThreads / kWarp);
  const int64_t first = blockIdx.x;
  const int32_t id = ids[first];
  if (id < 0 || id >= V) return;  // the forward pass has said so
  int before = 0;
  for (int64_t t = threadIdx.x; t < first; t += kThreads) before |= ids[t] == id;
  if (block_max<kThreads>(before, 0) != 0) return;
  float* const sums = dweight + id * dweight_stride;
  for (int64_t begin = 0; begin < D; begin += kThreads * kVector) {
    const int64_t d = begin + int64_t(threadIdx.x) * kVector;
    Floats8 sum = load8(sums + d, D - d);
    for (int64_t from = first; from < T; from += kThreads) {
      const int64_t t = from + threadIdx.x;
      const uint32_t mask = ballot(t < T && ids[t] == id);
      __syncthreads();
      if (threadIdx.x % kWarp == 0) found[int(threadIdx.x) / kWarp] = mask;
      __syncthreads();
      for (int w = 0; w < kThreads / kWarp; ++w) {
        for (uint32_t left = found[w]; left != 0; left &= left - 1) {
          const int64_t row = from + w * kWarp + lowest_bit(left);
          const Floats8 x = load8(dy + row * dy_stride + d, D - d);
          for (int j = 0; j < kVector; ++j) sum.v[j] = sum.v[j] + x.v[j];
        }
      }
    }
    store8(sums + d, sum, D - d);
  }
}

}  // namespace

void embedding_forward(const EmbeddingForward& args, Stream& stream) {
  copy_rows("embedding_forward", args.weight, args.ids, args.y, gpu::Fault::kToken, stream);
}

void embedding_backward(const EmbeddingBackward& args, Stream& stream) {
  if (args.dy.cols() == 0) return;
  visit_float(args.dy.dtype(), [&]<class Scalar>() {
    launch("embedding_backward", blocks(args.dy.rows()), kThreads, 0, stream, embedding_backward_kernel<Scalar>,
           args.ids.data<int32_t>(), args.dy.data<Scalar>(), args.dy.row_stride(), args.dweight.data<float>(),
           args.dweight.row_stride(), args.dweight.rows(), args.dy.rows(), args.dy.cols());
  });
}

}  // namespace octet::kernels::cuda
