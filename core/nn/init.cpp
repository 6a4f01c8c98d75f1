#include "core/nn/init.h"

#include <algorithm>

#include "core/base/random.h"

namespace octet {

void init_normal(Parameter& weight, uint64_t seed, float std) {
  const int64_t cols = weight.shape().cols();
  const RowRange own = weight.own();
  for (const WeightPiece& piece : weight.pieces()) {
    const int64_t begin = std::max(piece.first_row, own.first), end = std::min(piece.first_row + piece.rows, own.end());
    if (begin >= end) continue;
    const RandomStream stream(seed, "init/" + piece.name);
    float* values = weight.master().data<float>() + (begin - own.first) * cols;
    const auto first = uint64_t((begin - piece.first_row) * cols);  // a number depends on its place in the tensor alone
    weight.master().stream().parallel_for((end - begin) * cols, 4096,
                                          [&](int64_t i) { values[i] = std * stream.normal(first + uint64_t(i)); });
  }
}

void init_ones(Parameter& weight) {
  float* values = weight.master().data<float>();
  std::fill(values, values + weight.master().num_elements(), 1.0f);
}

}  // namespace octet
