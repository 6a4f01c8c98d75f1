// The first product of a gated feed-forward layer in FP8 and its activation (kernels/fp8_gemm.h, kernels/swiglu.h),
// with the bits of one after the other: h [R, 2F], rounded to bfloat16, need not exist. On a GPU one kernel makes both
// where 128 divides F and whole tiles can be copied; elsewhere h is a workspace.
#pragma once

#include "kernels/fp8_gemm.h"
#include "kernels/swiglu.h"

namespace octet::kernels {

struct Fp8SwigluGemm {
  ConstView a;             // [S, K] float8_e4m3
  ConstView a_scale;       // [S, ceil(K/128)] float32
  ConstView b;             // [G, 2F, K] float8_e4m3, or [2F, K] where G = 1: rows of the gate, then of up
  ConstView b_scale;       // [G, ceil(2F/128), ceil(K/128)] float32
  ConstView offsets = {};  // [G + 1] int64; not defined: one group of all rows
  ConstView rows = {};     // [R] int32: gathers the rows of a and a_scale; not defined: none
  Emulation emulation;
  ConstView weights = {};   // [R] float32; not defined: all 1
  float limit = 0.0f;       // 0: none
  View h_codes;             // [R, 2F] float8_e4m3, 1x128; not defined: none
  View h_scale;             // [R, ceil(2F/128)] float32
  View y_codes;             // [R, F] float8_e4m3, 1x128
  View y_scale;             // [R, ceil(F/128)] float32
  QuantizeStats* stats;     // of both; null: none
  ConstView num_rows = {};  // [1] int64, offsets[G]: the rest of R is left as it is; not defined: offsets[G] is R

  KernelCost cost() const {
    return {.name = "fp8_swiglu_gemm",
            .bytes = bytes_of(a, a_scale, b, b_scale, weights) + bytes_of(h_codes, h_scale, y_codes, y_scale),
            .pair_flops = 4.0 * double(y_codes.num_elements()) * double(a.cols())};
  }
};
// One after the other. h: [R, 2F] bfloat16.
inline Fp8GroupedGemm product_of(const Fp8SwigluGemm& args, const View& h) {
  return {.a = args.a,
          .a_scale = args.a_scale,
          .b = args.b,
          .b_scale = args.b_scale,
          .offsets = args.offsets,
          .rows = args.rows,
          .c = h,
          .emulation = args.emulation};
}
inline SwigluForwardFp8 activation_of(const Fp8SwigluGemm& args, const View& h) {
  return {.h = h,
          .weights = args.weights,
          .limit = args.limit,
          .h_codes = args.h_codes,
          .h_scale = args.h_scale,
          .y_codes = args.y_codes,
          .y_scale = args.y_scale,
          .stats = args.stats,
          .num_rows = args.num_rows};
}
namespace cpu {
void fp8_swiglu_gemm(const Fp8SwigluGemm& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void fp8_swiglu_gemm(const Fp8SwigluGemm& args, Stream& stream);
}  // namespace cuda
inline void fp8_swiglu_gemm(const Fp8SwigluGemm& args, Stream& stream) {
  dispatch<cpu::fp8_swiglu_gemm, cuda::fp8_swiglu_gemm>(args, stream);
}

}  // namespace octet::kernels
