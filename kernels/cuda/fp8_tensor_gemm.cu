#include "kernels/fp8_tensor_gemm.h"

#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/workspace.h"

namespace octet::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) repeat_scale_kernel(const float* scale, float* to, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) to[i] = *scale;
}
void repeat_scale(const ConstView& scale, float* to, int64_t count, Stream& stream) {
  if (count == 0) return;
  launch("repeat_scale", blocks(ceil_div<int64_t>(count, kThreads)), kThreads, 0, stream, repeat_scale_kernel,
         scale.data<float>(), to, count);
}

bool is_done_by_library(const Fp8TensorGemm& args, Stream& stream) {
  if (dense_gemm() == DenseGemm::kOctet) return false;
  const std::optional<DenseProduct> product = as_dense_product(args);
  return product && multiply_dense(*product, stream);
}

}  // namespace

void fp8_tensor_gemm(const Fp8TensorGemm& args, Stream& stream) {
  if (is_done_by_library(args, stream)) return;
  const int64_t R = args.c.rows(), N = args.c.cols();
  const int64_t k_blocks = ceil_div<int64_t>(args.a.cols(), 128), n_blocks = ceil_div<int64_t>(N, 128);
  Workspace<float> a_scale("scales of one value", R * k_blocks, stream);
  Workspace<float> b_scale("scales of one value", n_blocks * k_blocks, stream);
  repeat_scale(args.a_scale, a_scale.data(), R * k_blocks, stream);
  repeat_scale(args.b_scale, b_scale.data(), n_blocks * k_blocks, stream);
  fp8_grouped_gemm({.a = args.a,
                    .a_scale = ConstView(a_scale.data(), {R, k_blocks}, DType::kFloat32),
                    .b = args.b,
                    .b_scale = ConstView(b_scale.data(), {n_blocks, k_blocks}, DType::kFloat32),
                    .c = args.c,
                    .emulation = Emulation::kHopper},
                   stream);
}

}  // namespace octet::kernels::cuda
