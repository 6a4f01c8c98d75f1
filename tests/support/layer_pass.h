// A pass of a mixture-of-experts layer over some tokens of a sequence that all ranks know: what tests of dispatchers
// compare.
#pragma once

#include <vector>

#include "core/autograd/tape.h"
#include "core/nn/init.h"
#include "core/nn/moe_layer.h"
#include "core/tensor/transfer.h"
#include "tests/support/numeric.h"

namespace octet::test {

inline std::vector<float> floats(const Tensor& x) {
  if (x.dtype() == DType::kFloat32) return to_vector<float>(x);
  std::vector<float> values;
  for (const bfloat16 value : to_vector<bfloat16>(x)) values.push_back(float(value));
  return values;
}

// Tokens begin .. end - 1 of the sequence, [end - begin, width].
inline Tensor tokens_of(uint64_t seed, int64_t begin, int64_t end, int64_t width, DType dtype, Device device = {}) {
  const auto all = uniform(end * width, seed);
  const std::vector<float> mine(all.begin() + begin * width, all.end());
  if (dtype == DType::kFloat32) return from_vector(mine, {end - begin, width}, device);
  std::vector<bfloat16> narrow;
  for (const float value : mine) narrow.push_back(bfloat16(value));
  return from_vector(narrow, {end - begin, width}, device);
}

struct LayerPass {
  std::vector<float> y, dx;
  std::vector<std::vector<float>> w13, w2;  // gradients by expert at hand

  // Of the tokens and experts of the next rank.
  void append(const LayerPass& next) {
    y.insert(y.end(), next.y.begin(), next.y.end());
    dx.insert(dx.end(), next.dx.begin(), next.dx.end());
    w13.insert(w13.end(), next.w13.begin(), next.w13.end());
    w2.insert(w2.end(), next.w2.begin(), next.w2.end());
  }
};

// replayed: [end - begin, top_k], the experts of the tokens; not defined: those that the router chooses.
inline LayerPass run_layer(Dispatcher& dispatcher, const ModelConfig& config, const Numerics& numerics, int64_t begin,
                           int64_t end, Device device = {}, const Tensor& replayed = {}) {
  ModelContext context{.numerics = numerics, .recompute = {}, .device = device};
  MoeLayer layer("mlp.", config, context, dispatcher);
  std::vector<Parameter*> parameters;
  layer.visit_parameters([&](Parameter& parameter) {
    init_normal(parameter, 7, config.init_std);
    parameter.refresh();
    parameters.push_back(&parameter);
  });
  LayerPass pass;
  const Recording on(true);
  const DType dtype = numerics.activation_dtype();
  const Tensor x = make_source(tokens_of(1, begin, end, config.hidden, dtype, device),
                               [&pass](const Tensor& dx) { pass.dx = floats(dx); });
  const Tensor y = layer.forward(LinearInput(x, numerics), replayed);
  pass.y = floats(y);
  backward(y, tokens_of(2, begin, end, config.hidden, dtype, device));
  const auto by_expert = [](Parameter& parameter) {
    std::vector<std::vector<float>> all;
    for (int64_t e = 0; e < parameter.shape()[0]; ++e) all.push_back(floats(parameter.grad().slice_rows(e, 1)));
    return all;
  };
  pass.w13 = by_expert(*parameters[1]);
  pass.w2 = by_expert(*parameters[2]);
  return pass;
}

}  // namespace octet::test
