#include "core/nn/dispatcher.h"

#include "core/ops/combine.h"
#include "kernels/permute.h"

namespace octet {

Dispatched LocalDispatcher::dispatch(const LinearInput& input, const Tensor& indices, int64_t num_experts) {
  const int64_t R = indices.num_elements();
  const Tensor offsets = empty({num_experts + 1}, DType::kInt64);
  const Tensor row_of = empty(indices.shape(), DType::kInt32);
  const Tensor source = empty({R}, DType::kInt32);
  kernels::build_permutation({.indices = indices, .offsets = offsets, .row_of = row_of, .source = source},
                             indices.stream());
  const Tensor rows =
      record("dispatch", Tensor::without_data({R, input.x().cols()}, input.x().dtype()), {input.x()},
             [row_of](const Tensor& drows) -> Gradients { return {sum_rows_of_tokens(drows, row_of)}; });
  return {.input = input.at(rows), .groups = RowGroups::of_offsets(offsets, source, R), .row_of = row_of};
}

Tensor LocalDispatcher::combine(const Tensor& rows, const Dispatched& dispatched, const Tensor& weights,
                                const Tensor& base) {
  return octet::combine(rows, dispatched.row_of, weights, base);
}

}  // namespace octet
