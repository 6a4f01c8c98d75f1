#include "core/nn/init.h"

#include <algorithm>

#include "core/base/random.h"
#include "core/tensor/transfer.h"

namespace octet {

void init_normal(Parameter& weight, uint64_t seed, float std) {
  const int64_t cols = weight.shape().cols();
  const RowRange own = weight.own();
  for (const WeightPiece& piece : weight.pieces()) {
    const int64_t begin = std::max(piece.first_row, own.first), end = std::min(piece.first_row + piece.rows, own.end());
    if (begin >= end) continue;
    const RandomStream stream(seed, "init/" + piece.name);
    const Tensor rows = weight.master().reshape({own.rows, cols}).slice_rows(begin - own.first, end - begin);
    const Tensor host =
        rows.device().is_cpu() ? rows : empty(rows.shape(), DType::kFloat32, MemoryCategory::kWorkspace);
    float* values = host.data<float>();
    const auto first = uint64_t((begin - piece.first_row) * cols);  // a number depends on its place in the tensor alone
    default_stream().parallel_for((end - begin) * cols, 4096,
                                  [&](int64_t i) { values[i] = std * stream.normal(first + uint64_t(i)); });
    copy(host, rows);
  }
}

void init_ones(Parameter& weight) {
  const Tensor& master = weight.master();
  copy(from_vector(std::vector<float>(size_t(master.num_elements()), 1.0f), master.shape()), master);
}

}  // namespace octet
