// Rows of a table, by token.
//   y[t,d] = weight[ids[t], d]        dweight[ids[t], d] += dy[t,d], tokens in order
// ids must lie in [0, V): the data loader has checked them.
#pragma once

#include "core/base/view.h"
#include "kernels/dispatch.h"

namespace octet::kernels {

struct EmbeddingForward {
  ConstView ids;     // [T] int32
  ConstView weight;  // [V, D] float32 or bfloat16
  View y;            // [T, D] as weight

  KernelCost cost() const { return {.name = "embedding_forward", .bytes = bytes_of(ids, y, y)}; }
};
struct EmbeddingBackward {
  ConstView ids;  // [T] int32
  ConstView dy;   // [T, D] float32 or bfloat16
  View dweight;   // [V, D] float32, added to

  KernelCost cost() const {
    return {.name = "embedding_backward", .bytes = bytes_of(ids, dy) + 8.0 * double(dy.num_elements())};
  }
};
namespace cpu {
void embedding_forward(const EmbeddingForward& args, Stream& stream);
void embedding_backward(const EmbeddingBackward& args, Stream& stream);
}  // namespace cpu
namespace cuda {
void embedding_forward(const EmbeddingForward& args, Stream& stream);
void embedding_backward(const EmbeddingBackward& args, Stream& stream);
}  // namespace cuda
inline void embedding_forward(const EmbeddingForward& args, Stream& stream) {
  dispatch<cpu::embedding_forward, cuda::embedding_forward>(args, stream);
}
inline void embedding_backward(const EmbeddingBackward& args, Stream& stream) {
  dispatch<cpu::embedding_backward, cuda::embedding_backward>(args, stream);
}

}  // namespace octet::kernels
