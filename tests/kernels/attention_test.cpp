#include "kernels/attention.h"

#include <limits>

#include "tests/kernels/same_bits.h"

namespace octet::test {
namespace {

struct Sizes {
  int64_t batch, S, heads, kv_heads, head_dim, value_dim;
  int64_t tokens() const { return batch * S; }
  float scale() const { return 0.7f; }  // not 1 / sqrt(head_dim): it must be the argument that is used
};

// The formula of kernels/attention.h and its derivative, term by term, in float64.
struct Reference {
  Sizes n;
  Doubles q, k, v;
  size_t q_at(int64_t t, int64_t h) const { return size_t((t * n.heads + h) * n.head_dim); }
  size_t o_at(int64_t t, int64_t h) const { return size_t((t * n.heads + h) * n.value_dim); }
  size_t k_at(int64_t t, int64_t h) const { return size_t((t * n.kv_heads + h / (n.heads / n.kv_heads)) * n.head_dim); }
  size_t v_at(int64_t t, int64_t h) const {
    return size_t((t * n.kv_heads + h / (n.heads / n.kv_heads)) * n.value_dim);
  }
  // visit(token i, token j, head, p) for all j that i sees.
  template <class Visit>
  void each_pair(Doubles& lse, Visit&& visit) const {
    lse.assign(size_t(n.tokens() * n.heads), 0.0);
    for (int64_t i = 0; i < n.tokens(); ++i) {
      for (int64_t h = 0; h < n.heads; ++h) {
        Doubles scores;
        double sum = 0;
        for (int64_t j = i / n.S * n.S; j <= i; ++j) {
          double dot = 0;
          for (size_t d = 0; d < size_t(n.head_dim); ++d) dot += q[q_at(i, h) + d] * k[k_at(j, h) + d];
          scores.push_back(double(n.scale()) * dot);
          sum += std::exp(scores.back());
        }
        const double log_sum = lse[size_t(i * n.heads + h)] = std::log(sum);
        for (size_t j = 0; j < scores.size(); ++j)
          visit(i, i / n.S * n.S + int64_t(j), h, std::exp(scores[j] - log_sum));
      }
    }
  }
  Doubles output(Doubles* log_sums = nullptr) const {
    Doubles o(size_t(n.tokens() * n.heads * n.value_dim), 0.0), lse;
    each_pair(lse, [&](int64_t i, int64_t j, int64_t h, double p) {
      for (size_t d = 0; d < size_t(n.value_dim); ++d) o[o_at(i, h) + d] += p * v[v_at(j, h) + d];
    });
    if (log_sums != nullptr) *log_sums = lse;
    return o;
  }
  struct Gradients {
    Doubles dq, dk, dv;
  };
  Gradients gradients(const Doubles& grad_o) const {
    const Doubles o = output();
    Gradients g{Doubles(q.size()), Doubles(k.size()), Doubles(v.size())};
    Doubles lse;
    each_pair(lse, [&](int64_t i, int64_t j, int64_t h, double p) {
      double dp = 0, delta = 0;
      for (size_t d = 0; d < size_t(n.value_dim); ++d) {
        dp += grad_o[o_at(i, h) + d] * v[v_at(j, h) + d];
        delta += grad_o[o_at(i, h) + d] * o[o_at(i, h) + d];
        g.dv[v_at(j, h) + d] += p * grad_o[o_at(i, h) + d];
      }
      const double ds = p * (dp - delta) * double(n.scale());
      for (size_t d = 0; d < size_t(n.head_dim); ++d) {
        g.dq[q_at(i, h) + d] += ds * k[k_at(j, h) + d];
        g.dk[k_at(j, h) + d] += ds * q[q_at(i, h) + d];
      }
    });
    return g;
  }
};

// Queries, keys and values side by side in one row, as a fused projection leaves them; outputs and gradients too.
template <class Scalar>
struct Run {
  Sizes n;
  int64_t q_cols = n.heads * n.head_dim, k_cols = n.kv_heads * n.head_dim, v_cols = n.kv_heads * n.value_dim;
  // 16 bytes more of a row, as a GPU likes it, or one element.
  int64_t o_cols = n.heads * n.value_dim, row = q_cols + k_cols + v_cols + (n.head_dim % 8 == 0 ? 8 : 1);
  std::vector<Scalar> qkv = uniform<Scalar>(n.tokens() * row, 1), grad_o = uniform<Scalar>(n.tokens() * o_cols, 2);
  std::vector<Scalar> o = std::vector<Scalar>(grad_o.size()), dqkv = std::vector<Scalar>(qkv.size());
  std::vector<float> lse = std::vector<float>(size_t(n.tokens() * n.heads));

  View columns(std::vector<Scalar>& values, int64_t first, int64_t cols) {
    if (values.empty()) values.reserve(1);
    return View(values.data() + (values.empty() ? 0 : first), {n.tokens(), cols}, dtype_of<Scalar>, {}, row);
  }
  View q(std::vector<Scalar>& x) { return columns(x, 0, q_cols); }
  View k(std::vector<Scalar>& x) { return columns(x, q_cols, k_cols); }
  View v(std::vector<Scalar>& x) { return columns(x, q_cols + k_cols, v_cols); }
  void forward(Stream& stream = here()) {
    kernels::attention_forward({.q = q(qkv),
                                .k = k(qkv),
                                .v = v(qkv),
                                .o = view(o, {n.tokens(), o_cols}),
                                .lse = view(lse, {n.tokens(), n.heads}),
                                .batch = n.batch,
                                .num_heads = n.heads,
                                .num_kv_heads = n.kv_heads,
                                .scale = n.scale()},
                               stream);
  }
  void backward(Stream& stream = here()) {
    kernels::attention_backward({.grad_o = view(grad_o, {n.tokens(), o_cols}),
                                 .q = q(qkv),
                                 .k = k(qkv),
                                 .v = v(qkv),
                                 .o = view(o, {n.tokens(), o_cols}),
                                 .lse = view(lse, {n.tokens(), n.heads}),
                                 .dq = q(dqkv),
                                 .dk = k(dqkv),
                                 .dv = v(dqkv),
                                 .batch = n.batch,
                                 .num_heads = n.heads,
                                 .num_kv_heads = n.kv_heads,
                                 .scale = n.scale()},
                                stream);
  }
  Doubles part(const View& columns) const {
    Doubles values;
    for (int64_t t = 0; t < columns.rows(); ++t) {
      for (int64_t c = 0; c < columns.cols(); ++c) values.push_back(double(columns.template row<Scalar>(t)[c]));
    }
    return values;
  }
  Reference reference() { return {n, part(q(qkv)), part(k(qkv)), part(v(qkv))}; }
};

// Whether p and ds are rounded to bfloat16 before they are factors.
template <class Scalar>
bool rounds_factors(const Sizes& n) {
  return std::is_same_v<Scalar, bfloat16> && std::max(n.head_dim, n.value_dim) <= kernels::kWidestRoundedHead;
}

template <class Scalar>
void check(const Backend& backend, const Sizes& n) {
  CAPTURE(n.batch, n.S, n.heads, n.kv_heads, n.head_dim, n.value_dim);
  Run<Scalar> run{n};
  run.forward();
  const Reference reference = run.reference();
  Doubles lse;
  const Doubles o = reference.output(&lse);
  // A score is a float32 sum of head_dim terms, an output one of S; exp and log add a few roundings.
  double tolerance = (8 + 4 * std::sqrt(double(n.head_dim)) + 2 * std::sqrt(double(n.S))) * kEpsilonF32;
  // A tensor core cuts each of 17 terms at 2^-25 of the largest and the sum at 2^-23, once in 16 products.
  const bool is_rounded = rounds_factors<Scalar>(n);
  if (is_rounded && backend.is_cuda) tolerance += double((n.head_dim + n.S) / 16 + 2) * (17 * 0x1p-25 + 0x1p-23);
  // A factor that is rounded moves its term by half a step of bfloat16 at most, and a sum by as much of its terms.
  const double stored = std::is_same_v<Scalar, float> ? 0 : kEpsilonBF16 / 2,
               factor = is_rounded ? kEpsilonBF16 / 2 : 0;
  CHECK_THAT(doubles(run.o), NearAll(o, tolerance + stored + factor));
  CHECK_THAT(doubles(run.lse), NearAll(lse, tolerance, /*floor=*/1.0));
  run.backward();
  // The backward pass starts from the output as stored, whose rounding the derivative meets in grad_o . o.
  const double again = 4 * (tolerance + stored * std::sqrt(double(n.value_dim)) + factor);
  const Reference::Gradients g = reference.gradients(doubles(run.grad_o));
  CHECK_THAT(run.part(run.q(run.dqkv)), NearAll(g.dq, again, /*floor=*/1.0));
  CHECK_THAT(run.part(run.k(run.dqkv)), NearAll(g.dk, again, /*floor=*/1.0));
  CHECK_THAT(run.part(run.v(run.dqkv)), NearAll(g.dv, again, /*floor=*/1.0));
  // What lies between the rows is not touched.
  for (int64_t t = 0; t < n.tokens(); ++t) {
    for (int64_t c = run.q_cols + run.k_cols + run.v_cols; c < run.row; ++c) {
      CHECK(double(run.dqkv[size_t(t * run.row + c)]) == 0.0);
    }
  }
}

}  // namespace

TEST_CASE("the derivative used as attention's reference is that of its formula", "[kernels][attention]") {
  const Sizes n{.batch = 2, .S = 5, .heads = 4, .kv_heads = 2, .head_dim = 3, .value_dim = 2};
  Run<float> run{n};
  const Reference reference = run.reference();
  const Doubles grad_o = doubles(run.grad_o);
  const Reference::Gradients g = reference.gradients(grad_o);
  const auto formula = [&](Doubles Reference::*part) {
    return [&reference, part](const Doubles& x) {
      Reference moved = reference;
      moved.*part = x;
      return moved.output();
    };
  };
  CHECK_THAT(g.dq, NearAll(central_difference(formula(&Reference::q), grad_o, reference.q), 1e-8));
  CHECK_THAT(g.dk, NearAll(central_difference(formula(&Reference::k), grad_o, reference.k), 1e-8));
  CHECK_THAT(g.dv, NearAll(central_difference(formula(&Reference::v), grad_o, reference.v), 1e-8));
}

TEST_CASE("attention follows its formula, forward and backward", "[kernels][attention]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  for (const Sizes& n : std::vector<Sizes>{{0, 0, 2, 1, 8, 8},
                                           {2, 0, 2, 1, 8, 8},
                                           {1, 1, 1, 1, 1, 1},
                                           {3, 1, 2, 2, 16, 16},
                                           {2, 5, 4, 2, 3, 7},
                                           {1, 64, 1, 1, 16, 32},
                                           {2, 65, 3, 1, 20, 9},
                                           {1, 131, 2, 2, 32, 16},
                                           {1, 300, 1, 1, 8, 8},
                                           {1, 130, 4, 2, 48, 80},
                                           {2, 66, 1, 1, 192, 128},
                                           {1, 70, 1, 1, 128, 192},
                                           {1, 67, 1, 1, 64, 208}}) {
    check<float>(backend, n);
    check<bfloat16>(backend, n);
  }
}

TEMPLATE_TEST_CASE("attention of large scores stays finite and picks the largest", "[kernels][attention]", float,
                   bfloat16) {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  Run<TestType> run{{.batch = 1, .S = 70, .heads = 1, .kv_heads = 1, .head_dim = 2, .value_dim = 2}};
  // Scores to +-63000 differ by far more than exp() can tell apart.
  for (TestType& value : run.qkv) value = TestType(float(value) * 300);
  run.forward();
  run.backward();
  const Reference reference = run.reference();
  Doubles wanted;
  for (size_t i = 0; i < 70; ++i) {
    double best = -INFINITY;
    size_t at = 0;
    for (size_t j = 0; j <= i; ++j) {
      const double dot = reference.q[2 * i] * reference.k[2 * j] + reference.q[2 * i + 1] * reference.k[2 * j + 1];
      if (dot > best) best = dot, at = j;
    }
    wanted.push_back(reference.v[2 * at]), wanted.push_back(reference.v[2 * at + 1]);
  }
  CHECK_THAT(doubles(run.o), NearAll(wanted, 1e-3));
  for (const TestType value : run.dqkv) CHECK(std::isfinite(float(value)));
}

template <class Scalar>
void check_later_tokens_unseen(int64_t bad) {
  const Sizes n{.batch = 1, .S = 100, .heads = 2, .kv_heads = 1, .head_dim = 8, .value_dim = 8};
  Run<Scalar> clean{n}, spoilt{n};
  for (int64_t t = bad; t < n.S; ++t) {
    for (int64_t c = spoilt.q_cols; c < spoilt.q_cols + spoilt.k_cols + spoilt.v_cols; ++c) {
      spoilt.qkv[size_t(t * spoilt.row + c)] = Scalar(t % 2 ? std::numeric_limits<float>::quiet_NaN() : INFINITY);
    }
  }
  clean.forward();
  spoilt.forward();
  const int64_t before = bad * clean.o_cols;
  CHECK(std::memcmp(clean.o.data(), spoilt.o.data(), size_t(before) * sizeof(Scalar)) == 0);
  CHECK(std::equal(clean.lse.begin(), clean.lse.begin() + bad * n.heads, spoilt.lse.begin()));
  CHECK(std::isnan(float(spoilt.o.back())));
}

TEST_CASE("a token never sees a later one, whatever that holds", "[kernels][attention]") {
  const Backend backend = GENERATE(from_range(backends()));
  const int64_t bad = GENERATE(1, 2, 17, 63, 64, 90);
  const UseBackend use(backend);
  CAPTURE(backend.name, bad);
  check_later_tokens_unseen<float>(bad);
  if (!backend.is_cuda) check_later_tokens_unseen<bfloat16>(bad);  // its tensor cores multiply with 0
}

TEMPLATE_TEST_CASE("what another call has left in memory is not seen", "[kernels][attention]", float, bfloat16) {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  Run<TestType> spoilt{{.batch = 1, .S = 100, .heads = 1, .kv_heads = 1, .head_dim = 24, .value_dim = 24}};
  for (auto* values : {&spoilt.qkv, &spoilt.grad_o}) {
    std::fill(values->begin(), values->end(), TestType(std::numeric_limits<float>::quiet_NaN()));
  }
  for (int64_t S = 1; S <= 17; ++S) {
    CAPTURE(S);
    spoilt.forward(), spoilt.backward();
    check<TestType>(backend, {.batch = 1, .S = S, .heads = 1, .kv_heads = 1, .head_dim = 8, .value_dim = 8});
  }
}

TEST_CASE("decoding gives the bits of the forward pass, one token or many at a time", "[kernels][attention]") {
  const Backend backend = GENERATE(from_range(backends()));
  const UseBackend use(backend);
  CAPTURE(backend.name);
  // Rows that do not begin on a boundary of 16 bytes, and rows that do.
  const auto [head_dim, value_dim] = GENERATE(table<int64_t, int64_t>({{12, 20}, {16, 136}, {16, 200}}));
  CAPTURE(head_dim, value_dim);
  const Sizes n{.batch = 1, .S = 330, .heads = 4, .kv_heads = 2, .head_dim = head_dim, .value_dim = value_dim};
  Run<bfloat16> run{n};
  run.forward();
  for (const auto& [length, N] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {64, 1}, {65, 1}, {129, 7}, {200, 3}, {300, 100}, {330, 1}, {330, 330}, {257, 257}, {320, 64}}) {
    CAPTURE(length, N);
    // What the cache holds beyond the newest token is another sequence's rest.
    std::vector<bfloat16> cache = run.qkv, o(size_t(N * run.o_cols));
    for (size_t i = size_t(length * run.row); i < cache.size(); ++i) cache[i] = bfloat16(NAN);
    kernels::attention_decode(
        {.q = View(run.qkv.data() + (length - N) * run.row, {N, run.q_cols}, DType::kBFloat16, {}, run.row),
         .k_cache = run.k(cache),
         .v_cache = run.v(cache),
         .o = view(o, {N, run.o_cols}),
         .length = length,
         .num_heads = n.heads,
         .num_kv_heads = n.kv_heads,
         .scale = n.scale()},
        here());
    size_t different = 0;
    for (size_t i = 0; i < o.size(); ++i) {
      different += o[i].bits != run.o[size_t((length - N) * run.o_cols) + i].bits;
    }
    CHECK(different == 0);
  }
}

TEST_CASE("attention gives the same bits everywhere, but for a GPU's tensor cores, which have their own",
          "[kernels][attention]") {
  const auto append_run = [](std::string& bytes, auto run) {
    run.forward(), run.backward();
    append_bytes(bytes, run.o);
    append_bytes(bytes, run.lse);
    append_bytes(bytes, run.dqkv);
  };
  const Sizes grouped{2, 75, 4, 2, 24, 16}, tall{1, 270, 1, 1, 8, 8}, wide{1, 66, 2, 1, 8, 200};
  check_same_bits(backends(), [&](std::string& bytes) {
    for (const Sizes& n : {grouped, tall, wide}) append_run(bytes, Run<float>{n});
    append_run(bytes, Run<bfloat16>{wide});
  });
  const auto narrow = [&](std::string& bytes) {
    for (const Sizes& n : {grouped, tall}) append_run(bytes, Run<bfloat16>{n});
    Run<bfloat16> peaked{tall};  // whose gradients are flushed for the most part
    for (bfloat16& value : peaked.qkv) value = bfloat16(float(value) * 8);
    append_run(bytes, peaked);
  };
  check_same_bits(cpu_backends(), narrow);
  check_same_bits(cuda_backends(), narrow);
}

}  // namespace octet::test
