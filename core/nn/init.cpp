#include "core/nn/init.h"

#include "core/base/random.h"

namespace octet {

void init_normal(Parameter& weight, uint64_t seed, float std) {
  const int64_t cols = weight.shape().cols();
  for (const WeightPiece& piece : weight.pieces()) {
    const RandomStream stream(seed, "init/" + piece.name);
    float* values = weight.master().data<float>() + piece.first_row * cols;
    weight.master().stream().parallel_for(piece.rows * cols, 4096,
                                          [&](int64_t i) { values[i] = std * stream.normal(uint64_t(i)); });
  }
}

void init_ones(Parameter& weight) {
  float* values = weight.master().data<float>();
  std::fill(values, values + weight.master().num_elements(), 1.0f);
}

}  // namespace octet
