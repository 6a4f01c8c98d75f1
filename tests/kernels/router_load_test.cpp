#include "kernels/router_load.h"

#include "tests/kernels/backend.h"
#include "tests/support/numeric.h"

namespace octet::test {

TEST_CASE("choices of experts are counted, on top of what is there", "[kernels][router]") {
  const Backend backend = GENERATE(from_range(backends()));
  CAPTURE(backend);
  const UseBackend use(backend);
  std::vector<int32_t> indices = {3, 0, 3, 1, 3, 0};
  std::vector<int64_t> counts = {10, 0, 0, 1};
  kernels::count_choices({.indices = view(indices, {3, 2}), .counts = view(counts, {4})}, here());
  CHECK(counts == std::vector<int64_t>{12, 1, 0, 4});
}

TEST_CASE("the bias of a router follows the sign of each load", "[kernels][router]") {
  const Backend backend = GENERATE(from_range(backends()));
  CAPTURE(backend);
  const UseBackend use(backend);
  std::vector<int64_t> counts = {10, 2, 4, 0};  // mean 4
  std::vector<float> share(4, -1.0f), bias = {1.0f, 1.0f, 1.0f, 1.0f};
  const bool centered = GENERATE(false, true);
  const auto update = [&](float rate) {
    kernels::update_router_bias({.counts = view(counts, {4}),
                                 .share = view(share, {4}),
                                 .bias = view(bias, {4}),
                                 .rate = rate,
                                 .centered = centered},
                                here());
  };
  const std::vector<kernels::UpdateFactors> left_out = {{.is_left_out = 1}};
  kernels::update_router_bias({.counts = view(counts, {4}),
                               .share = view(share, {4}),
                               .bias = view(bias, {4}),
                               .rate = 0.5f,
                               .centered = centered,
                               .factors = left_out.data()},
                              here());
  CHECK(share == std::vector<float>(4, -1.0f));
  CHECK(bias == std::vector<float>(4, 1.0f));
  update(0.0f);
  CHECK(share == std::vector<float>{0.625f, 0.125f, 0.25f, 0.0f});
  CHECK(bias == std::vector<float>(4, 1.0f));
  update(0.5f);
  CHECK(bias ==
        (centered ? std::vector<float>{0.375f, 1.375f, 0.875f, 1.375f} : std::vector<float>{0.5f, 1.5f, 1.0f, 1.5f}));
  counts = {0, 0, 0, 0};  // a step of no tokens
  share.assign(4, 7.0f);
  update(0.5f);
  CHECK(share == std::vector<float>(4, 7.0f));
}

}  // namespace octet::test
