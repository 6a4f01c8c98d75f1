#include "kernels/router_load.h"

#include "kernels/cuda/device.cuh"

namespace octet::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// Whole numbers: the order of the sums does not matter.
__global__ void __launch_bounds__(kThreads)
    count_choices_kernel(const int32_t* indices, int64_t* counts, int64_t n, int64_t E, gpu::FaultRecord* record) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n && is_in_range(indices[i], E, gpu::Fault::kExpert, record)) atomic_add(counts + indices[i], 1);
}

__device__ __forceinline__ int sign_of(int64_t total, int64_t count, int64_t E) {
  const int64_t above = total - count * E;
  return above > 0 ? 1 : above < 0 ? -1 : 0;
}

// One block: thread t has experts t, t + kThreads, ...
__global__ void __launch_bounds__(kThreads)
    update_router_bias_kernel(const int64_t* counts, float* share, float* bias, float rate, bool centered, int64_t E,
                              const UpdateFactors* factors) {
  int64_t mine = 0;
  for (int64_t e = threadIdx.x; e < E; e += kThreads) mine += counts[e];
  const int64_t total = block_sum<kThreads>(mine);
  int signs = 0;
  for (int64_t e = threadIdx.x; e < E; e += kThreads) signs += sign_of(total, counts[e], E);
  const int sum = block_sum<kThreads>(signs);
  if (total == 0 || (factors != nullptr && factors->is_left_out != 0)) return;
  const float center = centered ? float(sum) / float(E) : 0.0f;
  for (int64_t e = threadIdx.x; e < E; e += kThreads) {
    share[e] = float(double(counts[e]) / double(total));
    if (rate != 0.0f) bias[e] += rate * (float(sign_of(total, counts[e], E)) - center);
  }
}

}  // namespace

void count_choices(const CountChoices& args, Stream& stream) {
  const int64_t n = args.indices.num_elements();
  launch("count_choices", blocks(ceil_div<int64_t>(n, kThreads)), kThreads, 0, stream, count_choices_kernel,
         args.indices.data<int32_t>(), args.counts.data<int64_t>(), n, args.counts.num_elements(),
         gpu::fault_record(stream.device()));
}

void update_router_bias(const UpdateRouterBias& args, Stream& stream) {
  launch("update_router_bias", blocks(1), kThreads, 0, stream, update_router_bias_kernel, args.counts.data<int64_t>(),
         args.share.data<float>(), args.bias.data<float>(), args.rate, args.centered, args.counts.num_elements(),
         args.factors);
}

}  // namespace octet::kernels::cuda
