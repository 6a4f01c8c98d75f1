// FP8 products of whole matrices with one scale each ("per-tensor" scaling), of E4M3 along k:
//   c[r,n] = a_scale * b_scale * sum_k a[r,k] * b[n,k]
// No recipe uses it: a tensor core is never faster than here, where nothing is promoted and nothing scaled before the
// end, so it is what `octet bench` measures others by. Each device sums as it is fastest: on GPUs cuBLASLt's scalar
// mode with fast accumulation, whose sums keep 13 fraction bits and are cut once in 32 of k; elsewhere, and where
// cuBLASLt has no form for a shape, as Fp8GroupedGemm does with all scales alike.
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

struct Fp8TensorGemm {
  ConstView a;        // [R, K] float8_e4m3
  ConstView a_scale;  // [1] float32
  ConstView b;        // [N, K] float8_e4m3
  ConstView b_scale;  // [1] float32
  View c;             // [R, N] float32 or bfloat16, rows may be strided

  KernelCost cost() const {
    return {.name = "fp8_tensor_gemm",
            .bytes = bytes_of(a, a_scale, b, b_scale, c),
            .pair_flops = 2.0 * double(c.num_elements()) * double(a.cols())};
  }
};
namespace cpu {
void fp8_tensor_gemm(const Fp8TensorGemm& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void fp8_tensor_gemm(const Fp8TensorGemm& args, Stream& stream);
}  // namespace cuda
inline void fp8_tensor_gemm(const Fp8TensorGemm& args, Stream& stream) {
  dispatch<cpu::fp8_tensor_gemm, cuda::fp8_tensor_gemm>(args, stream);
}

}  // namespace octet::kernels
