#include "core/tensor/transfer.h"
#include "optim/adamw.h"
#include "optim/lr_schedule.h"
#include "tests/support/devices.h"
#include "tests/support/numeric.h"

namespace octet::test {

TEST_CASE("each schedule passes its marks", "[optim]") {
  OptimConfig config;
  config.lr = 1.0;
  config.min_lr = 0.1;
  config.warmup_steps = 10;
  const auto at = [&config](int64_t step) { return learning_rate(config, step, 100); };
  for (const Schedule schedule : {Schedule::kConstant, Schedule::kLinear, Schedule::kCosine, Schedule::kWsd,
                                  Schedule::kMultiStep, Schedule::kDeepseekV3}) {
    config.schedule = schedule;
    config.milestones = {80};
    CHECK(at(1) == Approx(0.1));
    CHECK(at(10) == Approx(1.0));
  }
  config.schedule = Schedule::kConstant;
  CHECK(at(100) == 1.0);
  config.schedule = Schedule::kLinear;
  CHECK(at(55) == Approx(0.55));
  CHECK(at(100) == Approx(0.1));
  config.schedule = Schedule::kCosine;
  CHECK(at(55) == Approx(0.55));
  CHECK(at(32) == Approx(0.1 + 0.9 * 0.5 * (1 + std::cos(M_PI * 22 / 90))));
  CHECK(at(100) == Approx(0.1));
  config.decay_steps = 30;  // the decay may end before the run
  CHECK(at(40) == Approx(0.1));
  CHECK(at(90) == Approx(0.1));
  config.decay_steps = 0;
  config.schedule = Schedule::kWsd;  // the last tenth
  CHECK(at(90) == 1.0);
  CHECK(at(95) == Approx(0.55));
  CHECK(at(100) == Approx(0.1));
  config.schedule = Schedule::kMultiStep;
  config.milestones = {60, 80};
  config.factor = 0.5;
  CHECK(at(59) == 1.0);
  CHECK(at(60) == 0.5);
  CHECK(at(80) == 0.25);
  config.schedule = Schedule::kDeepseekV3;
  config.decay_start_step = 50;
  config.decay_steps = 20;
  config.final_lr = 0.03;
  config.final_steps = 10;
  CHECK(at(50) == 1.0);
  CHECK(at(60) == Approx(0.55));
  CHECK(at(70) == Approx(0.1));
  CHECK(at(90) == Approx(0.1));
  CHECK(at(91) == Approx(0.03));
}

TEST_CASE("AdamW takes the documented step, clipped by the global norm", "[optim]") {
  const Device device = GENERATE(from_range(devices_here()));
  const DType moments = GENERATE(DType::kFloat32, DType::kBFloat16);
  CAPTURE(device, moments);
  OptimConfig config;
  config.grad_clip = 1.0;
  config.weight_decay = 0.1;
  Parameter matrix("matrix", {2, 3}, WeightForm::kFloat32, /*decays=*/true, device);
  Parameter norm("norm", {4}, WeightForm::kFloat32, /*decays=*/false, device);
  AdamW optimizer({&matrix, &norm}, config, moments);
  std::vector<Doubles> p, m, v;
  for (Parameter* parameter : optimizer.parameters()) {
    const auto n = size_t(parameter->master().num_elements());
    const auto start = uniform(int64_t(n), 11);
    copy(from_vector(start, parameter->shape()), parameter->master());
    p.push_back(doubles(start)), m.push_back(Doubles(n, 0.0)), v.push_back(Doubles(n, 0.0));
  }
  const auto stored = [&](double x) { return moments == DType::kFloat32 ? x : double(bfloat16(float(x))); };
  for (int64_t step = 1; step <= 5; ++step) {
    double sum = 0;
    std::vector<Doubles> g;
    for (Parameter* parameter : optimizer.parameters()) {
      const auto values = uniform(parameter->master().num_elements(), uint64_t(100 + step));
      copy(from_vector(values, parameter->shape()), parameter->grad());
      g.push_back(doubles(values));
      for (const double x : g.back()) sum += x * x;
    }
    CHECK(optimizer.gradient_norm() == Approx(std::sqrt(sum)));
    const double lr = 0.01, clip = std::min(1.0, 1.0 / std::sqrt(sum));
    optimizer.step(step, lr);
    for (size_t i = 0; i < p.size(); ++i) {
      for (size_t j = 0; j < p[i].size(); ++j) {
        const double grad = g[i][j] * clip, new_m = 0.9 * m[i][j] + 0.1 * grad;
        const double new_v = 0.95 * v[i][j] + 0.05 * grad * grad;
        const double decay = i == 0 ? 1 - lr * 0.1 : 1.0;
        p[i][j] = p[i][j] * decay - lr * (new_m / (1 - std::pow(0.9, double(step)))) /
                                        (std::sqrt(new_v / (1 - std::pow(0.95, double(step)))) + 1e-8);
        m[i][j] = stored(new_m), v[i][j] = stored(new_v);
      }
      Parameter& parameter = *optimizer.parameters()[i];
      // A moment within half an ulp of a rounding boundary may fall to the other side: one bfloat16 step of it moves
      // the update by 2^-8 of lr.
      const double tolerance = 1e-5 + (moments == DType::kFloat32 ? 0 : double(step) * lr * 0x1p-8);
      CHECK_THAT(doubles(to_vector<float>(parameter.master())), NearAll(p[i], tolerance));
      CHECK(to_vector<float>(parameter.grad()) == std::vector<float>(p[i].size(), 0.0f));
    }
  }
}

TEST_CASE("a gradient that is not finite makes the norm so", "[optim]") {
  const Device device = GENERATE(from_range(devices_here()));
  CAPTURE(device);
  OptimConfig config;
  Parameter norm("norm", {4}, WeightForm::kFloat32, false, device);
  AdamW optimizer({&norm}, config, DType::kFloat32);
  const float bad = GENERATE(INFINITY, -INFINITY, NAN);
  copy(from_vector<float>({1, 0, bad, 2}, {4}), norm.grad());
  CHECK_FALSE(std::isfinite(optimizer.gradient_norm()));
}

}  // namespace octet::test
