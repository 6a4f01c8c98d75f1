// The other order of the codes of a weight, for products that sum along its rows (kernels/fp8_gemm.h).
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

struct TransposeCodes {
  // out[g,n,k] = codes[g,k,n]
  ConstView codes;  // [G, K, N] float8_e4m3 (or [K, N])
  View out;         // [G, N, K] (or [N, K])

  KernelCost cost() const { return {.name = "transpose_codes", .bytes = bytes_of(codes, out)}; }
};
namespace cpu {
void transpose_codes(const TransposeCodes& args, Stream& stream);
}
namespace cuda {
void transpose_codes(const TransposeCodes& args, Stream& stream);
}
inline void transpose_codes(const TransposeCodes& args, Stream& stream) {
  dispatch<cpu::transpose_codes, cuda::transpose_codes>(args, stream);
}

}  // namespace octet::kernels
