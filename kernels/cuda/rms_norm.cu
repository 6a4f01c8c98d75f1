// Forward and dx have a block for each row; its second read comes from cache. Sums run over eight columns of a thread,
// its pieces in order, then the tree of a block; dweight is summed as kernels/rms_norm.h says, so that it has the CPU's
// bits where rstd has.
#include "kernels/rms_norm.h"

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/quantize_tile.cuh"

namespace octet::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// 1 / rms of a row; all threads of the block call it.
template <class Scalar>
__device__ __forceinline__ float rstd_of(const Scalar* x, int64_t D, float eps) {
  float sum = 0.0f;
  for (int64_t d = int64_t(threadIdx.x) * kVector; d < D; d += kThreads * kVector) {
    const Floats8 v = load8(x + d, D - d);
    for (int j = 0; j < kVector; ++j) sum = fmaf(v.v[j], v.v[j], sum);
  }
  return 1.0f / sqrtf(block_sum<kThreads>(sum) / float(D) + eps);
}

template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const Scalar* x, int64_t x_stride, const float* weight, Scalar* y, int64_t y_stride, float* rstd,
                   int64_t D, float eps) {
  x += blockIdx.x * x_stride, y += blockIdx.x * y_stride;
  const float r = rstd_of(x, D, eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = r;
  for (int64_t d = int64_t(threadIdx.x) * kVector; d < D; d += kThreads * kVector) {
    Floats8 v = load8(x + d, D - d);
    const Floats8 w = load8(weight + d, D - d);
    for (int j = 0; j < kVector; ++j) v.v[j] = v.v[j] * r * w.v[j];
    store8(y + d, v, D - d);
  }
}

// Sixteen threads to 128 columns.
__global__ void __launch_bounds__(kThreads)
    forward_fp8_kernel(const bfloat16* x, int64_t x_stride, const float* weight, bfloat16* y, int64_t y_stride,
                       uint8_t* codes, int64_t codes_stride, float* scale, int64_t scale_stride, float* rstd,
                       QuantizeStats* stats, int64_t D, float eps) {
  x += blockIdx.x * x_stride, codes += blockIdx.x * codes_stride, scale += blockIdx.x * scale_stride;
  if (y != nullptr) y += blockIdx.x * y_stride;
  const float r = rstd_of(x, D, eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = r;
  Counts counts;
  for (int64_t first = 0; first < D; first += kThreads * kVector) {
    const int64_t d = first + int64_t(threadIdx.x) * kVector, n = D - d;
    const Floats8 v = load8(x + d, n), w = load8(weight + d, n);
    Floats8 scaled;
    for (int j = 0; j < kVector; ++j) scaled.v[j] = v.v[j] * r * w.v[j];
    const Bf16Piece rounded = Bf16Piece::of(scaled);
    if (y != nullptr) store8(y + d, scaled, n);
    quantize_row_block(rounded.numbers(), n, codes + d, scale + d / kBlock, counts);
  }
  add_counts<kThreads>(counts, D, stats);
}

template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    dx_kernel(const Scalar* dy, int64_t dy_stride, const Scalar* x, int64_t x_stride, const float* weight,
              const float* rstd, Scalar* dx, int64_t dx_stride, int64_t D) {
  dy += blockIdx.x * dy_stride, x += blockIdx.x * x_stride, dx += blockIdx.x * dx_stride;
  float dot = 0.0f;
  for (int64_t d = int64_t(threadIdx.x) * kVector; d < D; d += kThreads * kVector) {
    const Floats8 g = load8(dy + d, D - d), v = load8(x + d, D - d), w = load8(weight + d, D - d);
    for (int j = 0; j < kVector; ++j) dot = fmaf(g.v[j] * w.v[j], v.v[j], dot);
  }
  const float r = rstd[blockIdx.x];
  const float along_x = r * r * (block_sum<kThreads>(dot) / float(D));
  for (int64_t d = int64_t(threadIdx.x) * kVector; d < D; d += kThreads * kVector) {
    Floats8 g = load8(dy + d, D - d);
    const Floats8 v = load8(x + d, D - d), w = load8(weight + d, D - d);
    for (int j = 0; j < kVector; ++j) g.v[j] = r * (g.v[j] * w.v[j] - v.v[j] * along_x);
    store8(dx + d, g, D - d);
  }
}

// The sums of dy x rstd over the tokens of each block, [blocks, D]: two neighbouring columns to a thread.
template <class Scalar>
__global__ void __launch_bounds__(kThreads)
    dweight_blocks_kernel(const Scalar* dy, int64_t dy_stride, const Scalar* x, int64_t x_stride, const float* rstd,
                          float* partial, int64_t T, int64_t D) {
  const int64_t d = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * 2;
  const int64_t first = blockIdx.y * kRmsNormTokenBlock;
  const int64_t end = T - first < kRmsNormTokenBlock ? T : first + kRmsNormTokenBlock;
  if (d >= D) return;
  const bool both = d + 1 < D;
  float sum[2] = {0.0f, 0.0f};
  for (int64_t t = first; t < end; ++t) {
    const Scalar *g = dy + t * dy_stride + d, *v = x + t * x_stride + d;
    const float r = rstd[t];
    sum[0] = fmaf(to_float(g[0]) * r, to_float(v[0]), sum[0]);
    if (both) sum[1] = fmaf(to_float(g[1]) * r, to_float(v[1]), sum[1]);
  }
  partial[blockIdx.y * D + d] = sum[0];
  if (both) partial[blockIdx.y * D + d + 1] = sum[1];
}
__global__ void __launch_bounds__(kThreads)
    dweight_kernel(const float* partial, float* dweight, int64_t num_blocks, int64_t D) {
  const int64_t d = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (d >= D) return;
  float sum = dweight[d];
  for (int64_t block = 0; block < num_blocks; ++block) sum = sum + partial[block * D + d];
  dweight[d] = sum;
}

}  // namespace

void rms_norm_forward(const RmsNormForward& args, Stream& stream) {
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    launch("rms_norm_forward", blocks(args.x.rows()), kThreads, 0, stream, forward_kernel<Scalar>,
           args.x.data<Scalar>(), args.x.row_stride(), args.weight.data<float>(), args.y.data<Scalar>(),
           args.y.row_stride(), args.rstd.data<float>(), args.x.cols(), args.eps);
  });
}

void rms_norm_forward_fp8(const RmsNormForwardFp8& args, Stream& stream) {
  launch("rms_norm_forward_fp8", blocks(args.x.rows()), kThreads, 0, stream, forward_fp8_kernel,
         args.x.data<bfloat16>(), args.x.row_stride(), args.weight.data<float>(), args.y.data<bfloat16>(),
         args.y.row_stride(), args.codes.data<uint8_t>(), args.codes.row_stride(), args.scale.data<float>(),
         args.scale.row_stride(), args.rstd.data<float>(), args.stats, args.x.cols(), args.eps);
}

void rms_norm_backward(const RmsNormBackward& args, Stream& stream) {
  const int64_t T = args.x.rows(), D = args.x.cols();
  if (T == 0) return;
  visit_float(args.x.dtype(), [&]<class Scalar>() {
    const int64_t token_blocks = ceil_div<int64_t>(T, kRmsNormTokenBlock);
    Workspace<float> partial("rms_norm_backward", token_blocks * D, stream);
    // Before dx, which may overwrite dy.
    launch("rms_norm_backward, dweight of blocks", blocks(ceil_div<int64_t>(D, 2 * kThreads), token_blocks), kThreads,
           0, stream, dweight_blocks_kernel<Scalar>, args.dy.data<Scalar>(), args.dy.row_stride(),
           args.x.data<Scalar>(), args.x.row_stride(), args.rstd.data<float>(), partial.data(), T, D);
    launch("rms_norm_backward, dweight", blocks(ceil_div<int64_t>(D, kThreads)), kThreads, 0, stream, dweight_kernel,
           partial.data(), args.dweight.data<float>(), token_blocks, D);
    launch("rms_norm_backward, dx", blocks(T), kThreads, 0, stream, dx_kernel<Scalar>, args.dy.data<Scalar>(),
           args.dy.row_stride(), args.x.data<Scalar>(), args.x.row_stride(), args.weight.data<float>(),
           args.rstd.data<float>(), args.dx.data<Scalar>(), args.dx.row_stride(), D);
  });
}

}  // namespace octet::kernels::cuda
