#include "kernels/adamw.h"

#include "kernels/cuda/quantize_tile.cuh"

namespace octet::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// The same in every step.
struct Constants {
  float beta1, beta2, rest1, rest2, eps, weight_decay;
};
Constants constants_of(const AdamwStep& args) {
  return {.beta1 = args.beta1,
          .beta2 = args.beta2,
          .rest1 = 1.0f - args.beta1,
          .rest2 = 1.0f - args.beta2,
          .eps = args.eps,
          .weight_decay = args.weight_decay};
}

// The first n elements from i on; returns the new masters.
template <class Moment>
__device__ __forceinline__ Floats8 update(float* master, const float* grad, Moment* m, Moment* v, const Constants& by,
                                          const UpdateFactors& now, int64_t i, int64_t n) {
  Floats8 p = load8(master + i, n), ms = load8(m + i, n), vs = load8(v + i, n);
  const Floats8 grads = load8(grad + i, n);
  const float keep = 1.0f - now.lr * by.weight_decay;
  for (int j = 0; j < kVector; ++j) {
    const float g = grads.v[j] * now.grad_scale;
    ms.v[j] = fmaf(by.beta1, ms.v[j], by.rest1 * g);
    vs.v[j] = fmaf(by.beta2, vs.v[j], by.rest2 * g * g);
    const float step = (ms.v[j] * now.correct_m) / (sqrtf(vs.v[j] * now.correct_v) + by.eps);
    p.v[j] = fmaf(p.v[j], keep, -(now.lr * step));
  }
  store8(m + i, ms, n);
  store8(v + i, vs, n);
  store8(master + i, p, n);
  return p;
}

template <class Moment, class Weight>
__global__ void __launch_bounds__(kThreads)
    flat_kernel(float* master, const float* grad, Moment* m, Moment* v, Weight* weight, Constants by,
                const UpdateFactors* factors, int64_t N) {
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kVector;
  const UpdateFactors now = *factors;
  if (i >= N || now.is_left_out != 0) return;
  const Floats8 p = update(master, grad, m, v, by, now, i, N - i);
  if (weight != nullptr) store8(weight + i, p, N - i);
}

// A block for each 128x128 tile, which it updates and then quantises.
template <class Moment>
__global__ void __launch_bounds__(kTileThreads)
    blocks_kernel(float* master, const float* grad, Moment* m, Moment* v, Constants by, const UpdateFactors* factors,
                  uint8_t* codes, int64_t codes_stride, float* scale, int64_t scale_stride, QuantizeStats* stats,
                  int64_t N, int64_t K) {
  const UpdateFactors now = *factors;
  if (now.is_left_out != 0) return;
  const int64_t kb = blockIdx.x, nb = blockIdx.y, g = blockIdx.z, first = g * N + nb * kBlock;
  const int rows = int(N - nb * kBlock < kBlock ? N - nb * kBlock : kBlock);
  const int64_t k = kb * kBlock, n = K - k < kBlock ? K - k : kBlock;
  const int column = tile_column();
  const auto tile = Tile<Bf16Piece>::number(0);
  for (int pass = 0; pass < kTilePasses; ++pass) {
    Floats8 p = {};
    if (tile_row(pass) < rows && column < n) {
      p = update(master, grad, m, v, by, now, (first + tile_row(pass)) * K + k + column, n - column);
      for (int j = 0; j < kVector; ++j) p.v[j] = column + j < n ? p.v[j] : 0.0f;
    }
    tile.set(pass, Bf16Piece::of(p));
  }
  quantize_tile(tile, rows, n, codes + first * codes_stride + k, codes_stride,
                scale + (g * gridDim.y + nb) * scale_stride + kb, stats);
}

}  // namespace

void adamw_step(const AdamwStep& args, Stream& stream) {
  const Constants by = constants_of(args);
  visit_float(args.m.dtype(), [&]<class Moment>() {
    if (args.codes.is_defined()) {
      const Shape& shape = args.master.shape();
      const int64_t G = shape.rank() == 3 ? shape[0] : 1, N = shape[-2], K = shape[-1];
      return launch("adamw_step", blocks(ceil_div<int64_t>(K, kBlock), ceil_div<int64_t>(N, kBlock), G), kTileThreads,
                    Tile<Bf16Piece>::kSharedBytes, stream, blocks_kernel<Moment>, args.master.data<float>(),
                    args.grad.data<float>(), args.m.data<Moment>(), args.v.data<Moment>(), by, args.factors,
                    args.codes.data<uint8_t>(), args.codes.row_stride(), args.code_scale.data<float>(),
                    args.code_scale.row_stride(), args.stats, N, K);
    }
    const int64_t n = args.master.num_elements();
    const auto run = [&]<class Weight>() {
      launch("adamw_step", blocks(ceil_div<int64_t>(n, kThreads * kVector)), kThreads, 0, stream,
             flat_kernel<Moment, Weight>, args.master.data<float>(), args.grad.data<float>(), args.m.data<Moment>(),
             args.v.data<Moment>(), args.weight.data<Weight>(), by, args.factors, n);
    };
    if (!args.weight.is_defined()) return run.template operator()<float>();
    visit_float(args.weight.dtype(), run);
  });
}

}  // namespace octet::kernels::cuda
