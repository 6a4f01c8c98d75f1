// What an FP8 product over rows is to a persistent kernel.
#pragma once

#include "kernels/cuda/gemm_persistent.cuh"
#include "kernels/fp8_gemm.h"

namespace octet::kernels::cuda {

// Of args.c only the size counts.
template <class Result>
PersistentProduct<uint8_t, RowSpans, Result> persistent_product_of(const Fp8GroupedGemm& args,
                                                                   const Destination<Result>& c) {
  const int64_t R = args.c.rows(), N = args.c.cols(), K = args.a.cols();
  const int64_t k_blocks = ceil_div<int64_t>(K, 128), n_blocks = ceil_div<int64_t>(N, 128);
  return {.a = args.a.data<uint8_t>(),
          .a_step = args.a.row_stride(),
          .lines = args.rows.is_defined() ? args.rows.data<int32_t>() : nullptr,
          .a_scale = args.a_scale.data<float>(),
          .a_scale_line = k_blocks,
          .a_scale_block = 1,
          .b_scale = args.b_scale.data<float>(),
          .b_scale_group = n_blocks * k_blocks,
          .b_scale_column = args.b_is_kn ? 1 : k_blocks,
          .b_scale_block = args.b_is_kn ? n_blocks : 1,
          .b_group_rows = N,
          .spans = {args.offsets.is_defined() ? args.offsets.data<int64_t>() : nullptr, int(R)},
          .groups = args.offsets.is_defined() ? int(args.offsets.num_elements() - 1) : 1,
          .R = R,
          .N = N,
          .K = K,
          .c = c};
}

}  // namespace octet::kernels::cuda
