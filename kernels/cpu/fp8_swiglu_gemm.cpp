#include "kernels/fp8_swiglu_gemm.h"

#include <memory>

namespace octet::kernels {

void cpu::fp8_swiglu_gemm(const Fp8SwigluGemm& args, Stream& stream) {
  const int64_t R = args.y_codes.rows(), F = args.y_codes.cols();
  const auto memory = std::make_unique_for_overwrite<bfloat16[]>(size_t(R * 2 * F));
  const View h(memory.get(), {R, 2 * F}, DType::kBFloat16);
  cpu::fp8_grouped_gemm(product_of(args, h), stream);
  cpu::swiglu_forward_fp8(activation_of(args, h), stream);
}

}  // namespace octet::kernels
