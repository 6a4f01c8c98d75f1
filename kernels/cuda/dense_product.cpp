#include "kernels/cuda/dense_product.h"

#include <cstdlib>
#include <string_view>

namespace octet::kernels::cuda {
namespace {

bool is_on_boundary(const void* data, int64_t step_bytes) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && step_bytes % 16 == 0;
}

DenseGemm chosen_at_start() {
  const char* wanted = std::getenv("OCTET_DENSE_GEMM");
  if (wanted == nullptr || *wanted == '\0') return DenseGemm::kDefault;
  if (std::string_view(wanted) == "octet") return DenseGemm::kOctet;
  if (std::string_view(wanted) == "cublaslt") return DenseGemm::kCublaslt;
  fail(ErrorKind::kConfig, {.what = fmt::format("OCTET_DENSE_GEMM is \"{}\"; wanted octet or cublaslt", wanted),
                            .where = "environment variable OCTET_DENSE_GEMM",
                            .why = {},
                            .fix = "unset OCTET_DENSE_GEMM to have cuBLASLt for bfloat16 and Octet for FP8"});
}

// What the FP8 of Hopper has a form of: the header says it.
std::optional<DenseProduct> product_of_codes(const ConstView& a, const ConstView& b, const View& c,
                                             DenseScales scales) {
  const int64_t m = c.cols(), n = c.rows(), k = a.cols();
  const DenseProduct product{.operands = DType::kFloat8E4M3,
                             .left = {.data = b.data<uint8_t>(), .step = k, .is_transposed = true},
                             .right = {.data = a.data<uint8_t>(), .step = a.row_stride()},
                             .result_type = c.dtype(),
                             .result = c.raw(),
                             .result_step = c.row_stride(),
                             .m = m,
                             .n = n,
                             .k = k,
                             .scales = scales};
  const bool fits = m > 0 && n > 0 && k > 0 && m % 8 == 0 && n % 8 == 0 &&
                    is_on_boundary(product.left.data, product.left.step) &&
                    is_on_boundary(product.right.data, product.right.step) &&
                    is_on_boundary(product.result, product.result_step * int64_t(size_of(product.result_type)));
  if (!fits) return std::nullopt;
  return product;
}

DenseGemm& chosen() {
  static DenseGemm who = chosen_at_start();
  return who;
}

}  // namespace

DenseGemm dense_gemm() { return chosen(); }
void set_dense_gemm(DenseGemm who) { chosen() = who; }

std::optional<DenseProduct> as_dense_product(const GroupedGemm& args) {
  if (args.offsets.is_defined() || args.rows.is_defined() || args.a.dtype() != DType::kBFloat16) return std::nullopt;
  const DenseProduct product{
      .operands = DType::kBFloat16,
      .left = {.data = args.b.data<bfloat16>(), .step = args.b.row_stride(), .is_transposed = !args.b_is_kn},
      .right = {.data = args.a.data<bfloat16>(), .step = args.a.row_stride()},
      .result_type = args.c.dtype(),
      .result = args.c.raw(),
      .result_step = args.c.row_stride(),
      .m = args.c.cols(),
      .n = args.c.rows(),
      .k = args.a.cols(),
      .accumulate = args.accumulate};
  if (product.m == 0 || product.n == 0 || product.k == 0) return std::nullopt;
  return product;
}

std::optional<DenseProduct> as_dense_product(const GroupedWgrad& args) {
  if (args.offsets.is_defined() || args.rows.is_defined() || args.dy.dtype() != DType::kBFloat16) return std::nullopt;
  const DenseProduct product{
      .operands = DType::kBFloat16,
      .left = {.data = args.x.data<bfloat16>(), .step = args.x.row_stride()},
      .right = {.data = args.dy.data<bfloat16>(), .step = args.dy.row_stride(), .is_transposed = true},
      .result_type = DType::kFloat32,
      .result = args.dw.raw(),
      .result_step = args.dw.row_stride(),
      .m = args.x.cols(),
      .n = args.dy.cols(),
      .k = args.dy.rows(),
      .accumulate = args.accumulate};
  if (product.m == 0 || product.n == 0 || product.k == 0) return std::nullopt;
  return product;
}

std::optional<DenseProduct> as_dense_product(const Fp8GroupedGemm& args) {
  if (args.offsets.is_defined() || args.rows.is_defined() || args.b_is_kn) return std::nullopt;
  return product_of_codes(args.a, args.b, args.c, DenseScales::kBlocks);
}

std::optional<DenseProduct> as_dense_product(const Fp8TensorGemm& args) {
  std::optional<DenseProduct> product = product_of_codes(args.a, args.b, args.c, DenseScales::kOne);
  if (product) product->left_scale = args.b_scale.data<float>(), product->right_scale = args.a_scale.data<float>();
  return product;
}

}  // namespace octet::kernels::cuda
