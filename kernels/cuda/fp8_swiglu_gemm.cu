#include "kernels/fp8_swiglu_gemm.h"

#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/fp8_product.cuh"
#include "kernels/cuda/swiglu_codes.cuh"

namespace octet::kernels::cuda {
namespace {

// Codes leave by pieces of 16 bytes.
bool is_on_boundary(const View& codes) {
  return !codes.is_defined() || (reinterpret_cast<uintptr_t>(codes.raw()) | uint64_t(codes.row_stride())) % 16 == 0;
}

bool is_done_in_one(const Fp8SwigluGemm& args, Stream& stream) {
  const int64_t R = args.y_codes.rows(), F = args.y_codes.cols(), K = args.a.cols();
  const Fp8GroupedGemm product = product_of(args, View(nullptr, {R, 2 * F}, DType::kBFloat16, args.a.device()));
  if (args.emulation != Emulation::kHopper || R == 0 || F == 0 || K == 0 || F % kBlock != 0) return false;
  if (!is_on_boundary(args.h_codes) || !is_on_boundary(args.y_codes)) return false;
  // Whose sums are others.
  if (dense_gemm() == DenseGemm::kCublaslt && as_dense_product(product)) return false;
  const PersistentProduct<uint8_t, RowSpans, SwigluCodes> with_codes =
      persistent_product_of<SwigluCodes>(product, {.weights = args.weights.data<float>(),
                                                   .limit = limit_of(args.limit),
                                                   .h_codes = args.h_codes.data<uint8_t>(),
                                                   .h_codes_step = args.h_codes.row_stride(),
                                                   .h_scale = args.h_scale.data<float>(),
                                                   .h_scale_step = args.h_scale.row_stride(),
                                                   .y_codes = args.y_codes.data<uint8_t>(),
                                                   .y_codes_step = args.y_codes.row_stride(),
                                                   .y_scale = args.y_scale.data<float>(),
                                                   .y_scale_step = args.y_scale.row_stride(),
                                                   .stats = args.stats,
                                                   .num_rows = args.num_rows.data<int64_t>(),
                                                   .R = R,
                                                   .F = F});
  const PersistentLaunch<E4m3Products, Scales::kLinesByTiles, RowSpans, SwigluCodes> persistent(
      args.a.rows(), {args.b.data<uint8_t>(), with_codes.groups * 2 * F, K}, /*b_is_transposed=*/false, with_codes);
  if (!persistent.is_possible()) return false;
  persistent.launch("fp8_swiglu_gemm", stream);
  return true;
}

}  // namespace

void fp8_swiglu_gemm(const Fp8SwigluGemm& args, Stream& stream) {
  if (is_done_in_one(args, stream)) return;
  const int64_t R = args.y_codes.rows(), F = args.y_codes.cols();
  Workspace<bfloat16> memory("fp8_swiglu_gemm", R * 2 * F, stream);
  const View h(memory.data(), {R, 2 * F}, DType::kBFloat16, args.a.device());
  cuda::fp8_grouped_gemm(product_of(args, h), stream);
  cuda::swiglu_forward_fp8(activation_of(args, h), stream);
}

}  // namespace octet::kernels::cuda
