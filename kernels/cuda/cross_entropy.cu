// A block for each row, which is read twice: for its maximum and the sum of exp(x - maximum), and for the gradient. The
// sum is that of each thread, rescaled when a larger number comes, and then of the block (arXiv:1805.02867); its order
// is not the CPU's.
#include "kernels/cross_entropy.h"

#include "kernels/cuda/device.cuh"

namespace octet::kernels::cuda {
namespace {

constexpr int kThreads = 512;

template <class Gradient>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(const float* logits, int64_t logits_stride, const int32_t* targets, float* loss,
                         Gradient* dlogits, int64_t dlogits_stride, int64_t V, float grad_scale,
                         gpu::FaultRecord* record) {
  const float* const x = logits + blockIdx.x * logits_stride;
  Gradient* const dx = dlogits == nullptr ? nullptr : dlogits + blockIdx.x * dlogits_stride;
  const int32_t target = targets[blockIdx.x];
  if (target < 0 || !is_in_range(target, V, gpu::Fault::kToken, record)) {
    if (threadIdx.x == 0) loss[blockIdx.x] = 0.0f;
    if (dx == nullptr) return;
    for (int64_t v = int64_t(threadIdx.x) * kVector; v < V; v += kThreads * kVector) store8(dx + v, Floats8{}, V - v);
    return;
  }
  const float at_target = x[target];
  float largest = -kInfinity, sum = 0.0f;
  for (int64_t v = int64_t(threadIdx.x) * kVector; v < V; v += kThreads * kVector) {
    Floats8 values = load8(x + v, V - v);
    float before = largest;
    for (int j = 0; j < kVector; ++j) {
      if (v + j >= V) values.v[j] = -kInfinity;
      largest = values.v[j] > largest ? values.v[j] : largest;
    }
    if (largest > before) sum = sum * exp_of(before - largest);
    for (int j = 0; j < kVector; ++j) {
      // -infinity adds nothing, even where nothing larger has come; NaN does.
      if (values.v[j] != -kInfinity) sum = sum + exp_of(values.v[j] - largest);
    }
  }
  const float row_max = block_max<kThreads>(largest, -kInfinity);
  const float row_sum = block_sum<kThreads>(sum * (largest == -kInfinity ? 1.0f : exp_of(largest - row_max)));
  if (threadIdx.x == 0) loss[blockIdx.x] = log_of(row_sum) + (row_max - at_target);
  if (dx == nullptr) return;
  const float factor = grad_scale / row_sum;
  for (int64_t v = int64_t(threadIdx.x) * kVector; v < V; v += kThreads * kVector) {
    Floats8 values = load8(x + v, V - v);
    for (int j = 0; j < kVector; ++j) {
      values.v[j] = exp_of(values.v[j] - row_max) * factor;
      if (v + j == target) values.v[j] = values.v[j] - grad_scale;
    }
    store8(dx + v, values, V - v);
  }
}

}  // namespace

void cross_entropy(const CrossEntropy& args, Stream& stream) {
  const auto run = [&]<class Gradient>() {
    launch("cross_entropy", blocks(args.logits.rows()), kThreads, 0, stream, cross_entropy_kernel<Gradient>,
           args.logits.data<float>(), args.logits.row_stride(), args.targets.data<int32_t>(), args.loss.data<float>(),
           args.dlogits.data<Gradient>(), args.dlogits.row_stride(), args.logits.cols(), args.grad_scale,
           gpu::fault_record(stream.device()));
  };
  if (!args.dlogits.is_defined()) return run.template operator()<float>();
  visit_float(args.dlogits.dtype(), run);
}

}  // namespace octet::kernels::cuda
