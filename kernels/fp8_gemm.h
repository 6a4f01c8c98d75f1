// Block-scaled FP8 matrix products (arXiv:2412.19437, section 3.3). For each block b of 128 along the summed axis
//   acc = fma(p_b, a_scale * b_scale, acc),   p_b = sum over the block of code products
// and acc starts from 0; a block's p_b is formed as the emulation says:
//   kIdeal   float32, k in pairs: fma(a[2j+1], b[2j+1], p), then fma(a[2j], b[2j], p); the fast form of the CPU
//   kHopper  the H100 tensor core's own arithmetic, bit for bit (docs/numerics.md; MMA-Sim, arXiv:2511.10909): 32
//            products and p are aligned to the largest exponent among them (of a product the sum of its factors', -6
//            for a subnormal code; zeros have none), cut toward zero after 13 fraction bits, added exactly, and p is
//            the sum cut to 13 fraction bits
//   kFp64    p_b exact in float64, and acc too; rounded to float32 at the end: an oracle
// A NaN code makes the sums it enters NaN; with kIdeal and kHopper the NaN is 0x7fffffff.
// With kIdeal and kHopper every instruction set gives the same bits. Scales are powers of two, so a_scale * b_scale is
// exact. The result is rounded to the dtype of c once; where c is accumulated into, c = c + acc in float32.
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

enum class Emulation { kIdeal, kHopper, kFp64 };

struct Fp8GroupedGemm {
  // c[r,n] = sum_k a[row(r),k] * B(n,k) of the group of r;  row(r) = rows[r], or r
  ConstView a;             // [S, K] float8_e4m3
  ConstView a_scale;       // [S, ceil(K/128)] float32
  ConstView b;             // float8_e4m3 [G, N, K], or [G, K, N] where b_is_kn (both without G where G = 1)
  ConstView b_scale;       // float32 [G, ceil(N/128), ceil(K/128)], or [G, ceil(K/128), ceil(N/128)]
  ConstView offsets = {};  // [G + 1] int64; not defined: one group of all rows
  ConstView rows = {};     // [R] int32: gathers the rows of a and a_scale; not defined: none
  View c;                  // [R, N] float32 or bfloat16, rows may be strided
  bool b_is_kn = false;
  // b with its last two axes exchanged, for those who have it (kernels/transpose_codes.h): what reads_b_transposed()
  // then need not make. Not defined: nobody has.
  ConstView b_transposed = {};  // [G, N, K]
  Emulation emulation;

  KernelCost cost() const {
    return {.name = "fp8_grouped_gemm",
            .bytes = bytes_of(a, a_scale, b, b_scale, c),
            .pair_flops = 2.0 * double(c.num_elements()) * double(a.cols())};
  }
};
// Whether a product with b_is_kn reads b transposed: a tensor core sums along the memory of both operands.
inline bool reads_b_transposed(DeviceType device, Emulation emulation, int64_t K) {
  return device == DeviceType::kCuda && emulation == Emulation::kHopper && K % 16 == 0;
}
struct Fp8GroupedWgrad {
  // dw[g,n,k] = (accumulate ? dw[g,n,k] : 0) + sum over rows p of group g of dy[p,n] * x[p,k]; group g is rows 128 *
  // block_offsets[g] and on. A group without rows leaves dw as it is, or 0 where it is not accumulated.
  ConstView dy;             // column_codes_shape(P, N) float8_e4m3, as kernels/quantize.h QuantizeColumns leaves it
  ConstView dy_scale;       // [P/128, N] float32; by tiles [P/128, ceil(N/128)]
  ConstView x;              // column_codes_shape(P, K)
  ConstView x_scale;        // [P/128, K]; by tiles [P/128, ceil(K/128)]
  ConstView offsets;        // [G + 1] int64: rows of each group before padding; the padding is 0 and adds nothing
  ConstView block_offsets;  // [G + 1] int64
  View dw;                  // [G, N, K] float32 (or [N, K])
  bool accumulate = true;
  bool by_tiles = false;  // as RequantizeTiles leaves both
  int64_t num_rows = 0;   // of all groups before padding, for cost(): the offsets may lie on a GPU
  Emulation emulation;

  KernelCost cost() const {
    return {.name = "fp8_grouped_wgrad",
            .bytes = bytes_of(dy, dy_scale, x, x_scale, dw, accumulate ? dw : View()),
            .pair_flops = 2.0 * double(num_rows) * double(dw.shape()[-2] * dw.shape()[-1])};
  }
};
namespace cpu {
void fp8_grouped_gemm(const Fp8GroupedGemm& args, Stream& stream);
void fp8_grouped_wgrad(const Fp8GroupedWgrad& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void fp8_grouped_gemm(const Fp8GroupedGemm& args, Stream& stream);
void fp8_grouped_wgrad(const Fp8GroupedWgrad& args, Stream& stream);
}  // namespace cuda
inline void fp8_grouped_gemm(const Fp8GroupedGemm& args, Stream& stream) {
  dispatch<cpu::fp8_grouped_gemm, cuda::fp8_grouped_gemm>(args, stream);
}
inline void fp8_grouped_wgrad(const Fp8GroupedWgrad& args, Stream& stream) {
  dispatch<cpu::fp8_grouped_wgrad, cuda::fp8_grouped_wgrad>(args, stream);
}

}  // namespace octet::kernels
