// Small kernels over flat arrays.
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

struct AddInto {
  // y[i] = a[i] + b[i] in float32, rounded once
  ConstView a, b;  // float32 or bfloat16, each its own
  View y;          // float32 or bfloat16; may be a or b

  KernelCost cost() const { return {.name = "add_into", .bytes = bytes_of(a, b, y)}; }
};
struct Scale {
  View x;  // float32 or bfloat16: x[i] = x[i] * factor
  float factor;

  KernelCost cost() const { return {.name = "scale", .bytes = bytes_of(x, x)}; }
};
struct Cast {
  ConstView x;  // float32 or bfloat16
  View y;       // the same number of elements, float32 or bfloat16

  KernelCost cost() const { return {.name = "cast", .bytes = bytes_of(x, y)}; }
};
struct SquareSums {
  // sums[s] = sum over rows 128 s .. of x^2, in float64; in each matrix of [G, N, K] anew, so that there are
  // G ceil(N/128) sums, and one of a vector
  ConstView x;  // [G, N, K], [N, K] or [D], float32 or bfloat16, contiguous
  double* sums;

  KernelCost cost() const { return {.name = "square_sums", .bytes = bytes_of(x)}; }
};
struct CountNonFinite {
  ConstView x;     // float32 or bfloat16
  int64_t* count;  // added to

  KernelCost cost() const { return {.name = "count_non_finite", .bytes = bytes_of(x)}; }
};
namespace cpu {
void add_into(const AddInto& args, Stream& stream);
void scale(const Scale& args, Stream& stream);
void cast(const Cast& args, Stream& stream);
void square_sums(const SquareSums& args, Stream& stream);
void count_non_finite(const CountNonFinite& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void add_into(const AddInto& args, Stream& stream);
void scale(const Scale& args, Stream& stream);
void cast(const Cast& args, Stream& stream);
void square_sums(const SquareSums& args, Stream& stream);
void count_non_finite(const CountNonFinite& args, Stream& stream);
}  // namespace cuda
inline void add_into(const AddInto& args, Stream& stream) { dispatch<cpu::add_into, cuda::add_into>(args, stream); }
inline void scale(const Scale& args, Stream& stream) { dispatch<cpu::scale, cuda::scale>(args, stream); }
inline void cast(const Cast& args, Stream& stream) { dispatch<cpu::cast, cuda::cast>(args, stream); }
inline void square_sums(const SquareSums& args, Stream& stream) {
  dispatch<cpu::square_sums, cuda::square_sums>(args, stream);
}
inline void count_non_finite(const CountNonFinite& args, Stream& stream) {
  dispatch<cpu::count_non_finite, cuda::count_non_finite>(args, stream);
}

}  // namespace octet::kernels
