#include "kernels/adamw.h"

#include <memory>

#include "tests/kernels/same_bits.h"

namespace octet::test {
namespace {

struct Settings {
  float lr = 0.1f, beta1 = 0.9f, beta2 = 0.95f, eps = 1e-3f, weight_decay = 0.5f, grad_scale = 0.25f;
  bool is_left_out = false;
};
std::vector<kernels::UpdateFactors> factors_of(int64_t step, const Settings& s) {
  std::vector<kernels::UpdateFactors> factors = {kernels::UpdateFactors::of_step(step, s.lr, s.beta1, s.beta2)};
  factors[0].grad_scale = s.grad_scale;
  factors[0].is_left_out = s.is_left_out ? 1 : 0;
  return factors;
}

// Steps of the formula in float64, moments kept as Moment between the steps.
template <class Moment>
struct Reference {
  Doubles p, m, v;
  void step(const Doubles& grad, const Settings& s, int64_t step) {
    for (size_t i = 0; i < p.size(); ++i) {
      const double g = grad[i] * double(s.grad_scale);
      m[i] = double(s.beta1) * m[i] + (1 - double(s.beta1)) * g;
      v[i] = double(s.beta2) * v[i] + (1 - double(s.beta2)) * g * g;
      const double m_hat = m[i] / (1 - std::pow(double(s.beta1), double(step)));
      const double v_hat = v[i] / (1 - std::pow(double(s.beta2), double(step)));
      p[i] = p[i] * (1 - double(s.lr) * double(s.weight_decay)) -
             double(s.lr) * m_hat / (std::sqrt(v_hat) + double(s.eps));
      m[i] = double(Moment(float(m[i]))), v[i] = double(Moment(float(v[i])));
    }
  }
};

template <class Moment, class Weight>
void run_step(std::vector<float>& master, std::vector<float>& grad, std::vector<Moment>& m, std::vector<Moment>& v,
              std::vector<Weight>* weight, int64_t step, const Settings& s = {}) {
  const int64_t N = int64_t(master.size());
  const std::vector<kernels::UpdateFactors> factors = factors_of(step, s);
  kernels::adamw_step({.master = view(master, {N}),
                       .grad = view(grad, {N}),
                       .m = view(m, {N}),
                       .v = view(v, {N}),
                       .weight = weight == nullptr ? View() : view(*weight, {N}),
                       .factors = factors.data(),
                       .beta1 = s.beta1,
                       .beta2 = s.beta2,
                       .eps = s.eps,
                       .weight_decay = s.weight_decay},
                      here());
}

template <class Moment, class Weight>
void check(int64_t N) {
  auto master = uniform(N, 1);
  std::vector<Moment> m(master.size(), Moment(0.0f)), v(master.size(), Moment(0.0f));
  std::vector<Weight> weight(master.size());
  Reference<Moment> reference{doubles(master), Doubles(master.size()), Doubles(master.size())};
  // A moment that lies between two bfloat16 numbers may be rounded the other way in float64.
  const double tolerance = std::is_same_v<Moment, float> ? 16 * kEpsilonF32 : kEpsilonBF16;
  for (int64_t step = 1; step <= 3; ++step) {
    auto grad = uniform(N, uint64_t(10 + step));
    run_step(master, grad, m, v, &weight, step);
    reference.step(doubles(grad), {}, step);
    CHECK_THAT(doubles(m), NearAll(reference.m, tolerance));
    CHECK_THAT(doubles(v), NearAll(reference.v, tolerance));
    // What the moments err by is felt in lr * m / sqrt(v), of size lr.
    CHECK_THAT(doubles(master), NearAll(reference.p, 8 * kEpsilonF32 + 0.1 * 2 * tolerance, /*floor=*/1.0));
    size_t different = 0;
    for (size_t i = 0; i < weight.size(); ++i) different += double(weight[i]) != double(Weight(master[i]));
    CHECK(different == 0);
  }
}

}  // namespace

TEST_CASE("adamw follows its formula", "[kernels][adamw]") {
  const Backend backend = GENERATE(from_range(backends()));
  const int64_t N = GENERATE(0, 1, 37, 16384 + 19);
  const UseBackend use(backend);
  CAPTURE(backend.name, N);
  check<float, float>(N);
  check<bfloat16, bfloat16>(N);
  check<float, bfloat16>(N);
}

TEST_CASE("the update uses the moments before they are rounded", "[kernels][adamw]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  // m after the step is 1 + 2^-9, which bfloat16 cannot hold: with lr = 1 and v = 1 the parameter shows which was used.
  std::vector<float> master = {0.0f}, grad = {1.0f + 0x1p-9f};
  std::vector<bfloat16> m = {bfloat16(0.0f)}, v = {bfloat16(0.0f)};
  const Settings s{.lr = 1, .beta1 = 0, .beta2 = 0, .eps = 1, .weight_decay = 0, .grad_scale = 1};
  run_step<bfloat16, float>(master, grad, m, v, nullptr, 1, s);
  CHECK(float(m[0]) == 1.0f);
  CHECK(double(master[0]) == Approx(-(1.0 + 0x1p-9) / (2.0 + 0x1p-9)).epsilon(1e-6));
}

TEST_CASE("a parameter without gradient only decays, and the first step has the size of lr", "[kernels][adamw]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  std::vector<float> master = {2.0f, 2.0f}, grad = {0.0f, 1e-3f}, m(2), v(2);
  Settings s;
  s.eps = 1e-12f;
  run_step<float, float>(master, grad, m, v, nullptr, 1, s);
  CHECK(master[0] == Approx(2.0 * 0.95));
  CHECK(master[1] == Approx(2.0 * 0.95 - 0.1));
  CHECK((m[0] == 0.0f && v[0] == 0.0f));
}

TEST_CASE("a step that is left out changes nothing", "[kernels][adamw]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  std::vector<float> master = {2.0f, -1.0f, NAN}, grad = {1.0f, NAN, 3.0f}, m = {0.5f, 0.5f, 0.5f}, v = {1, 1, 1};
  std::vector<bfloat16> weight(3, bfloat16(7.0f));
  run_step<float, bfloat16>(master, grad, m, v, &weight, 2, {.is_left_out = true});
  CHECK((master[0] == 2.0f && master[1] == -1.0f && std::isnan(master[2])));
  CHECK(m == std::vector<float>(3, 0.5f));
  CHECK(v == std::vector<float>(3, 1.0f));
  CHECK(doubles(weight) == Doubles(3, 7.0));
  std::vector<uint8_t> codes(3, 0xaa);
  std::vector<float> scale(1, -1.0f);
  std::vector<kernels::QuantizeStats> stats(1);
  const std::vector<kernels::UpdateFactors> factors = factors_of(2, {.is_left_out = true});
  kernels::adamw_step({.master = view(master, {1, 3}),
                       .grad = view(grad, {1, 3}),
                       .m = view(m, {1, 3}),
                       .v = view(v, {1, 3}),
                       .weight = {},
                       .codes = View(codes.data(), {1, 3}, DType::kFloat8E4M3),
                       .code_scale = view(scale, {1, 1}),
                       .stats = stats.data(),
                       .factors = factors.data(),
                       .beta1 = 0.9f,
                       .beta2 = 0.95f,
                       .eps = 1e-3f,
                       .weight_decay = 0.5f},
                      here());
  CHECK(codes == std::vector<uint8_t>(3, 0xaa));
  CHECK(scale[0] == -1.0f);
  CHECK((master[0] == 2.0f && stats[0].count == 0));
}

TEST_CASE("adamw gives the same bits everywhere", "[kernels][adamw]") {
  const int64_t N = 16384 * 2 + 333;
  auto grad = uniform(N, 2);
  check_same_bits(backends(), [&](std::string& bytes) {
    auto master = uniform(N, 1);
    std::vector<bfloat16> m(grad.size()), v(grad.size()), weight(grad.size());
    for (int64_t step = 1; step <= 2; ++step) run_step(master, grad, m, v, &weight, step);
    append_bytes(bytes, master);
    append_bytes(bytes, m);
    append_bytes(bytes, v);
    append_bytes(bytes, weight);
  });
}

TEST_CASE("adamw leaves the FP8 form that quantize_blocks would make", "[kernels][adamw]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  const int64_t G = GENERATE(1, 3), N = GENERATE(0, 1, 130), K = GENERATE(1, 128, 1100);
  CAPTURE(backend.name, G, N, K);
  const int64_t n_blocks = (N + 127) / 128, k_blocks = (K + 127) / 128;
  auto master = uniform(G * N * K, 1), grad = uniform(G * N * K, 2);
  std::vector<bfloat16> m(master.size()), v(master.size()), flat_m(m), flat_v(v), weight(master.size());
  auto flat = master;
  for (auto* values : {&master, &grad, &flat}) values->reserve(1);
  for (auto* values : {&m, &v, &flat_m, &flat_v, &weight}) values->reserve(1);
  std::vector<uint8_t> codes(master.size(), 0xaa), want_codes(codes);
  std::vector<float> scale(size_t(G * n_blocks * k_blocks), -1.0f), want_scale(scale);
  for (auto* values : {&codes, &want_codes}) values->reserve(1);
  for (auto* values : {&scale, &want_scale}) values->reserve(1);
  const auto stats_memory = std::make_unique<kernels::QuantizeStats>();
  kernels::QuantizeStats& stats = *stats_memory;
  const auto want_stats_memory = std::make_unique<kernels::QuantizeStats>();
  kernels::QuantizeStats& want_stats = *want_stats_memory;
  const Settings s;
  const std::vector<kernels::UpdateFactors> factors = factors_of(3, s);
  kernels::adamw_step({.master = view(master, {G, N, K}),
                       .grad = view(grad, {G, N, K}),
                       .m = view(m, {G, N, K}),
                       .v = view(v, {G, N, K}),
                       .weight = {},
                       .codes = View(codes.data(), {G, N, K}, DType::kFloat8E4M3),
                       .code_scale = view(scale, {G, n_blocks, k_blocks}),
                       .stats = &stats,
                       .factors = factors.data(),
                       .beta1 = s.beta1,
                       .beta2 = s.beta2,
                       .eps = s.eps,
                       .weight_decay = s.weight_decay},
                      here());
  run_step(flat, grad, flat_m, flat_v, &weight, 3);
  kernels::quantize_blocks({.x = view(weight, {G, N, K}),
                            .codes = View(want_codes.data(), {G, N, K}, DType::kFloat8E4M3),
                            .scale = view(want_scale, {G, n_blocks, k_blocks}),
                            .stats = &want_stats},
                           here());
  CHECK(master == flat);
  CHECK(doubles(m) == doubles(flat_m));
  CHECK(doubles(v) == doubles(flat_v));
  CHECK(codes == want_codes);
  CHECK(scale == want_scale);
  CHECK(stats.count == want_stats.count);
  CHECK(stats.flushed == want_stats.flushed);
}

}  // namespace octet::test
