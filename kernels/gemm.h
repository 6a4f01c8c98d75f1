// Matrix products over groups of rows, in float32 or bfloat16 with float32 sums. G = 1 is the dense product. Group g
// owns the rows offsets[g] .. offsets[g+1] - 1; empty groups are normal. Order of the sums, the same on every
// instruction set: bfloat16 takes k in pairs, acc = fma(a[2j+1], b[2j+1], acc) and then acc = fma(a[2j], b[2j], acc),
// subnormal inputs and results taken as zero (what vdpbf16ps does); float32 takes k in order with fma. Large K is cut
// every kGemmKBlock: each piece is summed from 0 and the pieces are added in order.
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

inline constexpr int64_t kGemmKBlock = 256;

inline KernelCost product_cost(const char* name, DType operands, double flops, double bytes) {
  if (operands == DType::kFloat32) return {.name = name, .bytes = bytes, .float_flops = flops};
  return {.name = name, .bytes = bytes, .pair_flops = flops};
}

struct GroupedGemm {
  // c[r,n] = sum_k a[row(r),k] * B(n,k) of the group of r;  row(r) = rows[r], or r
  ConstView a;             // [S, K] float32 or bfloat16, rows may be strided
  ConstView b;             // as a: [G, N, K], or [G, K, N] where b_is_kn (both without G where G = 1)
  ConstView offsets = {};  // [G + 1] int64; not defined: one group of all rows
  ConstView rows = {};     // [R] int32: gathers the rows of a; not defined: none
  View c;                  // [R, N] float32 or bfloat16, rows may be strided
  bool b_is_kn = false;
  bool accumulate = false;  // c += , float32 c only

  KernelCost cost() const {
    return product_cost("grouped_gemm", a.dtype(), 2.0 * double(c.num_elements()) * double(a.cols()),
                        bytes_of(a, b, c));
  }
};
struct GroupedWgrad {
  // dw[g,n,k] = (accumulate ? dw[g,n,k] : 0) + sum over the rows r of group g, in order, of dy[r,n] * x[row(r),k]
  ConstView dy;            // [R, N] float32 or bfloat16
  ConstView x;             // [S, K] as dy
  ConstView offsets = {};  // [G + 1] int64; not defined: one group of all rows
  ConstView rows = {};     // [R] int32: gathers the rows of x; not defined: none
  View dw;                 // [G, N, K] float32 (or [N, K])
  bool accumulate = true;

  KernelCost cost() const {
    return product_cost("grouped_wgrad", dy.dtype(), 2.0 * double(dy.num_elements()) * double(x.cols()),
                        bytes_of(dy, x, dw, accumulate ? dw : View()));
  }
};
namespace cpu {
void grouped_gemm(const GroupedGemm& args, Stream& stream);
void grouped_wgrad(const GroupedWgrad& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void grouped_gemm(const GroupedGemm& args, Stream& stream);
void grouped_wgrad(const GroupedWgrad& args, Stream& stream);
}  // namespace cuda
inline void grouped_gemm(const GroupedGemm& args, Stream& stream) {
  dispatch<cpu::grouped_gemm, cuda::grouped_gemm>(args, stream);
}
inline void grouped_wgrad(const GroupedWgrad& args, Stream& stream) {
  dispatch<cpu::grouped_wgrad, cuda::grouped_wgrad>(args, stream);
}

}  // namespace octet::kernels
