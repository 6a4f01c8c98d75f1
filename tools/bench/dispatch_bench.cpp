#include "tools/bench/dispatch_bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <numeric>

#include "core/base/clock.h"
#include "core/base/random.h"
#include "core/base/thread_pool.h"
#include "core/tensor/transfer.h"
#include "kernels/elementwise.h"
#include "kernels/permute.h"
#include "parallel/expert_dispatcher.h"
#include "parallel/mpi_communicator.h"
#include "tools/bench/bare_mpi.h"
#include "tools/bench/whole_number.h"
#include "tools/train/rank_session.h"
#include "tools/train/timing.h"

namespace octet {
namespace {

struct DispatchOptions {
  int64_t tokens = 4096, hidden = 1024, experts = 64, top_k = 8, repeats = 20;
  Wire wire = Wire::kFp8;
};

DispatchOptions parse(const std::vector<std::string>& args) {
  DispatchOptions options;
  for (const std::string& arg : args) {
    if (take_number(arg, {{"tokens", &options.tokens},
                          {"hidden", &options.hidden},
                          {"experts", &options.experts},
                          {"top_k", &options.top_k},
                          {"repeats", &options.repeats}})) {
      continue;
    }
    if (arg == "wire=fp8" || arg == "wire=bf16") {
      options.wire = arg == "wire=fp8" ? Wire::kFp8 : Wire::kBf16;
    } else {
      fail(ErrorKind::kArgument,
           {.what = fmt::format("bench dispatch: \"{}\" came; wanted tokens=N, hidden=N, experts=N, top_k=N, repeats=N "
                                "or wire=fp8|bf16",
                                arg),
            .where = "command line",
            .why = {},
            .fix = "mpirun -np 4 octet bench dispatch tokens=4096 hidden=1024 experts=64 top_k=8"});
    }
  }
  require(options.top_k <= options.experts, "bench dispatch: top_k is {}; wanted at most experts, {}", options.top_k,
          options.experts);
  return options;
}

// Each token's experts: the first top_k of a random order.
Tensor random_choices(const DispatchOptions& options, int rank) {
  const RandomStream stream(1, fmt::format("choices of rank {}", rank));
  std::vector<int32_t> choices, order(size_t(options.experts));
  for (int64_t t = 0; t < options.tokens; ++t) {
    std::iota(order.begin(), order.end(), 0);
    for (int64_t k = 0; k < options.top_k; ++k) {
      const auto from = k + int64_t(stream.below(uint64_t(options.experts - k), uint64_t(t), uint64_t(k)));
      std::swap(order[size_t(k)], order[size_t(from)]);
      choices.push_back(order[size_t(k)]);
    }
  }
  return from_vector(choices, {options.tokens, options.top_k});
}

double median(const std::vector<double>& seconds) { return timing_of(seconds).median; }

int bench_on(const DispatchOptions& options, Communicator& world) {
  const int64_t T = options.tokens, D = options.hidden, P = world.size();
  ExpertDispatcher dispatcher({.ep = &world}, options.wire);
  const ExpertRange here = dispatcher.experts_at_hand(options.experts);
  const Tensor indices = random_choices(options, world.rank());
  const Numerics numerics{.recipe = Recipe::kFp8Block};
  const RandomStream stream(2, fmt::format("values of rank {}", world.rank()));
  Tensor x = empty({T, D}, DType::kBFloat16);
  default_stream().parallel_for(T * D, 4096,
                                [&](int64_t i) { x.data<bfloat16>()[i] = bfloat16(stream.normal(uint64_t(i))); });
  const Tensor weights = empty({T, options.top_k}, DType::kFloat32);
  std::fill_n(weights.data<float>(), weights.num_elements(), 1.0f / float(options.top_k));

  // An expert that gives back its input, so that the sum over a token's choices must be top_k times the token itself,
  // quantised.
  const auto pass = [&](std::vector<double>* stages) {
    double last = real_clock().seconds();
    size_t stage = 0;
    const auto lap = [&] {
      const double now = real_clock().seconds();
      if (stages != nullptr) stages[stage].push_back(now - last);
      ++stage;
      last = real_clock().seconds();
    };
    const LinearInput input(x, numerics);
    input.quantized();
    lap();  // 0: quantised
    auto dispatch = dispatcher.start(input, indices, weights, options.experts);
    dispatch->send();
    const Dispatched arrived = dispatch->arrive();
    lap();  // 1: dispatched
    const Fp8Rows& came = arrived.input.quantized();
    Tensor values = empty({came.codes.rows(), D}, DType::kBFloat16);
    kernels::dequantize_rows({.codes = came.codes, .scale = came.scale, .x = values}, values.stream());
    Tensor rows = empty({arrived.groups.num_rows, D}, DType::kBFloat16);
    kernels::gather_rows({.x = values, .source = arrived.groups.source, .y = rows}, rows.stream());
    world.barrier();
    last = real_clock().seconds();
    dispatch->send_back(rows);
    const Tensor y = dispatch->combine(Tensor());
    ++stage;
    lap();  // 3: combined
    return y;
  };
  world.reset_traffic();
  const Tensor y = pass(nullptr);
  const int64_t sent_bytes = world.traffic().bytes();
  const Fp8Rows wanted = quantize_rows(x, nullptr);
  Tensor exact = empty_like(x);
  kernels::dequantize_rows({.codes = wanted.codes, .scale = wanted.scale, .x = exact}, x.stream());
  double worst = 0;
  for (int64_t i = 0; i < T * D; ++i) {
    const double mean = double(float(y.data<bfloat16>()[i])) / double(options.top_k);
    worst = std::max(worst, std::abs(mean - double(float(exact.data<bfloat16>()[i]))));
  }
  require(ErrorKind::kNumeric, worst < 0.05, "bench dispatch: tokens came back other than they left, by {}", worst);

  // The bytes that the two exchanges move, for MPI by itself.
  const auto ranks = static_cast<size_t>(P);
  std::vector<int> to(ranks, 0), from(ranks, 0), rows_to(ranks, 0), rows_from(ranks, 0);
  const int64_t row_bytes = options.wire == Wire::kFp8 ? D + (D + 127) / 128 * 4 : 2 * D;
  for (int64_t t = 0; t < T; ++t) {
    std::vector<bool> goes(static_cast<size_t>(P), false);
    for (int64_t k = 0; k < options.top_k; ++k) {
      const auto p = size_t(indices.data<int32_t>()[t * options.top_k + k] / here.count);
      rows_to[p] += int(2 * D);
      if (!goes[p]) to[p] += int(row_bytes);
      goes[p] = true;
    }
  }
  const std::vector<int> ones(size_t(P), 4);
  bare_mpi_alltoallv(reinterpret_cast<const std::byte*>(to.data()), ones, reinterpret_cast<std::byte*>(from.data()),
                     ones);
  bare_mpi_alltoallv(reinterpret_cast<const std::byte*>(rows_to.data()), ones,
                     reinterpret_cast<std::byte*>(rows_from.data()), ones);
  const auto total = [](const std::vector<int>& counts) { return std::accumulate(counts.begin(), counts.end(), 0ll); };
  const int64_t most = std::max(std::max(total(to), total(from)), std::max(total(rows_to), total(rows_from)));
  const Tensor a = zeros({most}, DType::kUInt8), b = zeros({most}, DType::kUInt8);
  const auto* const send = a.data<std::byte>();
  auto* const receive = b.data<std::byte>();

  std::vector<double> ours, bare, exchange, stages[4];
  std::vector<int64_t> to64(to.begin(), to.end()), from64(from.begin(), from.end());
  std::vector<int64_t> rows_to64(rows_to.begin(), rows_to.end()), rows_from64(rows_from.begin(), rows_from.end());
  for (int64_t i = 0; i < options.repeats; ++i) {
    world.barrier();
    pass(stages);
    ours.push_back(stages[1].back() + stages[3].back());
    bare_mpi_barrier();
    double begin = real_clock().seconds();
    bare_mpi_alltoallv(send, to, receive, from);
    bare_mpi_alltoallv(send, rows_from, receive, rows_to);
    bare.push_back(real_clock().seconds() - begin);
    world.barrier();
    begin = real_clock().seconds();
    world.all_to_all_v({.send = a.slice_rows(0, total(to)),
                        .send_pieces = {.counts = to64},
                        .receive = b.slice_rows(0, total(from)),
                        .receive_pieces = {.counts = from64}},
                       default_stream());
    world.all_to_all_v({.send = a.slice_rows(0, total(rows_from)),
                        .send_pieces = {.counts = rows_from64},
                        .receive = b.slice_rows(0, total(rows_to)),
                        .receive_pieces = {.counts = rows_to64}},
                       default_stream());
    exchange.push_back(real_clock().seconds() - begin);
  }
  if (world.rank() != 0) return 0;
  const double bytes = double(sent_bytes);
  fmt::print("{} ranks, {} tokens each of {} elements, {} experts, top {}; {} on the wire, bfloat16 back\n", P, T, D,
             options.experts, options.top_k, options.wire == Wire::kFp8 ? "FP8" : "bfloat16");
  fmt::print("a rank sends {:.2f} MiB to others\n", bytes / (1 << 20));
  const auto row = [&](const char* name, double seconds) {
    fmt::print("{:<44} {:>8.3f} ms {:>8.2f} GB/s {:>8.2f}\n", name, seconds * 1e3, bytes / seconds * 1e-9,
               median(bare) / seconds);
  };
  fmt::print("{:<44} {:>11} {:>13} {:>8}\n", "", "median", "", "of MPI");
  row("MPI_Alltoallv of the bytes, twice", median(bare));
  row("the communicator's all_to_all_v, twice", median(exchange));
  row("dispatch and combine, with all copies", median(ours));
  fmt::print("of which dispatch {:.3f} ms, combine {:.3f}; before it, quantising {:.3f} ms\n", median(stages[1]) * 1e3,
             median(stages[3]) * 1e3, median(stages[0]) * 1e3);
  return 0;
}

}  // namespace

int bench_dispatch(const std::vector<std::string>& args) {
  const DispatchOptions options = parse(args);
  if (!is_mpi_rank()) {
    fail(ErrorKind::kArgument, {.what = "bench dispatch: this is one process; wanted ranks",
                                .where = "command line",
                                .why = {},
                                .fix = "mpirun -np 4 octet bench dispatch"});
  }
  set_num_threads(threads_of_rank());
  return run_as_rank(
      {}, [] {}, [&](Communicator& world) { return bench_on(options, world); });
}

}  // namespace octet
