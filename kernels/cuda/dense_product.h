// Products of two whole matrices, as cuBLASLt takes them: by columns, so that each matrix here is the transpose of what
// kernels/gemm.h calls it. Two forms of multiply_dense: cublaslt.cpp, and emulation/dense_product.cpp for tests.
#pragma once

#include <cstdint>
#include <optional>

#include "core/base/stream.h"
#include "kernels/fp8_gemm.h"
#include "kernels/fp8_tensor_gemm.h"
#include "kernels/gemm.h"

namespace octet::kernels::cuda {

struct DenseOperand {
  const void* data = nullptr;
  int64_t step = 0;            // elements from one column to the next
  bool is_transposed = false;  // the memory holds the transpose
};
enum class DenseScales { kNone, kOne, kBlocks };
// result[m, n] = (accumulate ? result[m, n] : 0) + sum_k left[m, k] * right[k, n]
struct DenseProduct {
  DType operands;  // bfloat16 or float8_e4m3
  DenseOperand left, right;
  DType result_type;  // float32 or bfloat16
  void* result;
  int64_t result_step;
  int64_t m, n, k;
  bool accumulate = false;
  // Of float8_e4m3, float32: kOne, one for each matrix, with sums that nothing promotes; kBlocks, of left for 128 by
  // 128 elements, [ceil(m/128), scale_step(k)], of right for 128 of k, [ceil(k/128), scale_step(n)].
  DenseScales scales = DenseScales::kNone;
  const float* left_scale = nullptr;
  const float* right_scale = nullptr;
};
// How far apart cuBLASLt wants lines of so many scales.
constexpr int64_t scale_step(int64_t scales) { return (scales + 3) / 4 * 4; }

// What a call asks for as one product; nothing where it has groups, gathers rows, is empty or of float32.
std::optional<DenseProduct> as_dense_product(const GroupedGemm& args);
std::optional<DenseProduct> as_dense_product(const GroupedWgrad& args);
// Of blocks without the scales, whose layout is another. Nothing, too, for what the FP8 of Hopper has no form of: the
// sum must run along the rows of both operands, which must lie on boundaries of 16 bytes, and m and n must be multiples
// of 8.
std::optional<DenseProduct> as_dense_product(const Fp8GroupedGemm& args);
std::optional<DenseProduct> as_dense_product(const Fp8TensorGemm& args);

// Who multiplies. By default a library multiplies bfloat16, and Octet FP8, whose bits are those of the CPU. The
// environment variable OCTET_DENSE_GEMM=octet|cublaslt gives all of it to one.
enum class DenseGemm { kDefault, kOctet, kCublaslt };
DenseGemm dense_gemm();
void set_dense_gemm(DenseGemm who);

// False where there is no algorithm for it; nothing has been asked of the stream then.
bool multiply_dense(const DenseProduct& product, Stream& stream);

}  // namespace octet::kernels::cuda
