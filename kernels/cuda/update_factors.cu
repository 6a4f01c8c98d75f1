#include "kernels/update_factors.h"

#include "kernels/cuda/device.cuh"

namespace octet::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// One block. The sum is in the order of the host's: one thread adds what all have brought near.
__global__ void __launch_bounds__(kThreads)
    judge_update_kernel(const float* losses, int64_t n, const double* squares, int64_t S, double grad_clip,
                        UpdateFactors* factors, const gpu::FaultRecord* record) {
  OCTET_SHARED(double, near, kThreads);
  int wrong = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) wrong += fabsf(losses[i]) < kInfinity ? 0 : 1;  // NaN: 1
  wrong = block_sum<kThreads>(wrong);
  double sum = 0;
  for (int64_t begin = 0; begin < S; begin += kThreads) {
    const int64_t count = S - begin < kThreads ? S - begin : kThreads;
    __syncthreads();  // the last ones have been added
    if (threadIdx.x < count) near[int(threadIdx.x)] = squares[begin + threadIdx.x];
    __syncthreads();
    if (threadIdx.x != 0) continue;
    for (int i = 0; i < int(count); ++i) sum += double(near[i]);
  }
  if (threadIdx.x != 0) return;
  const double norm = sqrt(sum);
  const bool is_finite = wrong == 0 && norm < double(kInfinity);
  factors->grad_scale = grad_clip > 0 && norm > grad_clip ? float(grad_clip / norm) : 1.0f;
  factors->is_left_out = is_finite && record->fault == int64_t(gpu::Fault::kNone) ? 0 : 1;
}

}  // namespace

void judge_update(const JudgeUpdate& args, Stream& stream) {
  launch("judge_update", blocks(1), kThreads, 0, stream, judge_update_kernel, args.losses.data<float>(),
         args.losses.num_elements(), args.squares.data<double>(), args.squares.num_elements(), args.grad_clip,
         args.factors, gpu::fault_record(stream.device()));
}

}  // namespace octet::kernels::cuda
