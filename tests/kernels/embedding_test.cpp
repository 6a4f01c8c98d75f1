#include "kernels/embedding.h"

#include "tests/kernels/same_bits.h"

namespace octet::test {
namespace {

std::vector<int32_t> some_ids(int64_t T, int64_t V) {
  const RandomStream random(9, "test");
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < T; ++t) ids.push_back(int32_t(random.below(uint64_t(V), uint64_t(t))));
  return ids;
}

template <class Scalar>
void check(int64_t T, int64_t V, int64_t D) {
  auto ids = some_ids(T, V);
  auto weight = uniform<Scalar>(V * D, 1), dy = uniform<Scalar>(T * D, 2);
  std::vector<Scalar> y(dy.size()), wanted;
  kernels::embedding_forward({.ids = view(ids, {T}), .weight = view(weight, {V, D}), .y = view(y, {T, D})}, here());
  for (const int32_t id : ids) wanted.insert(wanted.end(), weight.begin() + id * D, weight.begin() + (id + 1) * D);
  CHECK(doubles(y) == doubles(wanted));
  auto dweight = uniform(V * D, 3);
  Doubles sums = doubles(dweight);
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t d = 0; d < D; ++d) sums[size_t(ids[size_t(t)] * D + d)] += double(dy[size_t(t * D + d)]);
  }
  kernels::embedding_backward({.ids = view(ids, {T}), .dy = view(dy, {T, D}), .dweight = view(dweight, {V, D})},
                              here());
  CHECK_THAT(doubles(dweight), NearAll(sums, std::sqrt(double(T + 1)) * kEpsilonF32));
}

}  // namespace

TEST_CASE("embedding copies rows and adds gradients to them", "[kernels][embedding]") {
  const Backend backend = GENERATE(from_range(backends()));
  const int64_t T = GENERATE(0, 1, 70), V = GENERATE(1, 9), D = GENERATE(1, 31, 128);
  const UseBackend use(backend);
  CAPTURE(backend.name, T, V, D);
  check<float>(T, V, D);
  check<bfloat16>(T, V, D);
}

TEST_CASE("embedding gradients add tokens in order, with the same bits everywhere", "[kernels][embedding]") {
  const int64_t T = 500, V = 7, D = 150;
  auto ids = some_ids(T, V);
  auto dy = uniform<bfloat16>(T * D, 2);
  std::vector<float> in_order(size_t(V * D), 0.0f);
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t d = 0; d < D; ++d) in_order[size_t(ids[size_t(t)] * D + d)] += float(dy[size_t(t * D + d)]);
  }
  check_same_bits(backends(), [&](std::string& bytes) {
    std::vector<float> dweight(in_order.size(), 0.0f);
    kernels::embedding_backward({.ids = view(ids, {T}), .dy = view(dy, {T, D}), .dweight = view(dweight, {V, D})},
                                here());
    CHECK(dweight == in_order);
    append_bytes(bytes, dweight);
  });
}

}  // namespace octet::test
