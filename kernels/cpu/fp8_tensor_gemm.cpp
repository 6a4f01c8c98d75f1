#include "kernels/fp8_tensor_gemm.h"

#include <vector>

#include "kernels/fp8_gemm.h"

namespace octet::kernels {

void cpu::fp8_tensor_gemm(const Fp8TensorGemm& args, Stream& stream) {
  const int64_t R = args.c.rows(), N = args.c.cols(), k_blocks = (args.a.cols() + 127) / 128,
                n_blocks = (N + 127) / 128;
  std::vector<float> a_scale(size_t(R * k_blocks), args.a_scale.data<float>()[0]);
  std::vector<float> b_scale(size_t(n_blocks * k_blocks), args.b_scale.data<float>()[0]);
  fp8_grouped_gemm({.a = args.a,
                    .a_scale = View(a_scale.data(), {R, k_blocks}, DType::kFloat32),
                    .b = args.b,
                    .b_scale = View(b_scale.data(), {n_blocks, k_blocks}, DType::kFloat32),
                    .c = args.c,
                    .emulation = Emulation::kIdeal},
                   stream);
}

}  // namespace octet::kernels
