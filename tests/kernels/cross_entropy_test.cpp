#include "kernels/cross_entropy.h"

#include <limits>

#include "tests/kernels/same_bits.h"

namespace octet::test {
namespace {

constexpr float kGradScale = 0.3f;

Doubles reference(const Doubles& logits, const std::vector<int32_t>& targets, size_t V) {
  Doubles loss;
  for (size_t t = 0; t < targets.size(); ++t) {
    double sum = 0;
    for (size_t v = 0; v < V; ++v) sum += std::exp(logits[t * V + v]);
    loss.push_back(targets[t] < 0 ? 0.0 : std::log(sum) - logits[t * V + size_t(targets[t])]);
  }
  return loss;
}

template <class Gradient>
void check(int64_t T, int64_t V) {
  auto logits = uniform(T * V, 1);
  for (float& value : logits) value *= 5;
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < T; ++t) targets.push_back(t % 4 == 3 ? -1 : int32_t(t * 7 % V));
  std::vector<float> loss(targets.size(), -1.0f), loss_alone(targets.size(), -1.0f);
  std::vector<Gradient> dlogits(logits.size(), Gradient(9.0f));
  kernels::cross_entropy({.logits = view(logits, {T, V}),
                          .targets = view(targets, {T}),
                          .loss = view(loss, {T}),
                          .dlogits = view(dlogits, {T, V}),
                          .grad_scale = kGradScale},
                         here());
  kernels::cross_entropy({.logits = view(logits, {T, V}),
                          .targets = view(targets, {T}),
                          .loss = view(loss_alone, {T}),
                          .dlogits = {},
                          .grad_scale = kGradScale},
                         here());
  const auto formula = [&](const Doubles& v) { return reference(v, targets, size_t(V)); };
  const double tolerance = (8 + std::sqrt(double(V))) * kEpsilonF32;
  CHECK_THAT(doubles(loss), NearAll(formula(doubles(logits)), tolerance, /*floor=*/1.0));
  CHECK(loss_alone == loss);
  const double stored = std::is_same_v<Gradient, float> ? 0 : kEpsilonBF16 / 2;
  const Doubles dy(targets.size(), double(kGradScale));
  CHECK_THAT(doubles(dlogits), NearAll(central_difference(formula, dy, doubles(logits)), tolerance + stored + 1e-8,
                                       /*floor=*/double(kGradScale)));
  if constexpr (std::is_same_v<Gradient, float>) {  // over the logits
    kernels::cross_entropy({.logits = view(logits, {T, V}),
                            .targets = view(targets, {T}),
                            .loss = view(loss, {T}),
                            .dlogits = view(logits, {T, V}),
                            .grad_scale = kGradScale},
                           here());
    CHECK(logits == dlogits);
    CHECK(loss == loss_alone);
  }
}

}  // namespace

TEST_CASE("cross-entropy follows its formula, with its gradient", "[kernels][cross_entropy]") {
  const Backend backend = GENERATE(from_range(backends()));
  const int64_t T = GENERATE(0, 1, 9), V = GENERATE(1, 16, 37);
  const UseBackend use(backend);
  CAPTURE(backend.name, T, V);
  check<float>(T, V);
  check<bfloat16>(T, V);
}

TEST_CASE("cross-entropy of extreme logits", "[kernels][cross_entropy]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> logits = {1e4f,  -1e4f, 0.0f,  // the target is certain
                               1e4f,  -1e4f, 0.0f,  // the target is impossible
                               -1e4f, -1e4f, -1e4f, -inf, 0.0f, 0.0f, nan, 0.0f, 0.0f};
  std::vector<int32_t> targets = {0, 1, 2, 1, 1};
  std::vector<float> loss(5), dlogits(15);
  kernels::cross_entropy({.logits = view(logits, {5, 3}),
                          .targets = view(targets, {5}),
                          .loss = view(loss, {5}),
                          .dlogits = view(dlogits, {5, 3}),
                          .grad_scale = 1.0f},
                         here());
  CHECK(loss[0] == 0.0f);
  CHECK(loss[1] == 2e4f);
  CHECK(loss[2] == Approx(std::log(3.0)));
  CHECK(loss[3] == Approx(std::log(2.0)));
  CHECK(std::isnan(loss[4]));
  CHECK(std::vector<float>(dlogits.begin(), dlogits.begin() + 6) == std::vector<float>{0, 0, 0, 1, -1, 0});
  CHECK(dlogits[9] == 0.0f);
}

TEST_CASE("cross-entropy gives the same bits everywhere", "[kernels][cross_entropy]") {
  const int64_t T = 33, V = 1013;
  auto logits = uniform(T * V, 1);
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < T; ++t) targets.push_back(int32_t(t * 31 % V));
  check_same_bits([&](std::string& bytes) {
    std::vector<float> loss(targets.size()), wide(logits.size());
    std::vector<bfloat16> narrow(logits.size());
    for (const View& dlogits : {view(wide, {T, V}), view(narrow, {T, V})}) {
      kernels::cross_entropy({.logits = view(logits, {T, V}),
                              .targets = view(targets, {T}),
                              .loss = view(loss, {T}),
                              .dlogits = dlogits,
                              .grad_scale = kGradScale},
                             here());
      append_bytes(bytes, loss);
    }
    append_bytes(bytes, wide);
    append_bytes(bytes, narrow);
  });
}

}  // namespace octet::test
