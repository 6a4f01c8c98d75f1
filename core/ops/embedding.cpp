#include "core/ops/embedding.h"

#include "kernels/embedding.h"

namespace octet {

Tensor embedding(const Tensor& ids, Parameter& weight) {
  require(ids.shape().rank() == 1 && ids.dtype() == DType::kInt32, "embedding: ids are {} {}; wanted int32 [T]",
          ids.dtype(), ids.shape());
  Tensor y = empty({ids.size(0), weight.shape()[1]}, weight.weight().dtype(), ids.device());  // [T, D]
  kernels::embedding_forward({.ids = ids, .weight = weight.weight(), .y = y}, y.stream());
  return make_source(y, [ids, &weight](const Tensor& dy) {
    kernels::embedding_backward({.ids = ids, .dy = dy, .dweight = weight.grad()}, dy.stream());
  });
}

}  // namespace octet
