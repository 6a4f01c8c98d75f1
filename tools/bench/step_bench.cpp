#include "tools/bench/step_bench.h"

#include <fmt/core.h>
#include <sys/resource.h>

#include <algorithm>
#include <numeric>
#include <optional>

#include "core/base/clock.h"
#include "core/base/isa.h"
#include "core/io/json.h"
#include "core/tensor/transfer.h"
#include "kernels/device_runtime.h"
#include "kernels/peak.h"
#include "parallel/mpi_communicator.h"
#include "parallel/parallelize.h"
#include "parallel/self_communicator.h"
#include "tools/bench/whole_number.h"
#include "tools/data/made_up_batch.h"
#include "tools/train/device.h"
#include "tools/train/model_stats.h"
#include "tools/train/rank_session.h"
#include "tools/train/step_graph.h"
#include "tools/train/timing.h"
#include "tools/train/training_step.h"
#include "tools/train/yaml_reader.h"

namespace octet {
namespace {

struct StepOptions {
  std::string config;
  std::vector<std::string> overrides;
  int64_t steps = 7, warmup = 3, threads = 0, link_delay_us = 0;
  bool phases = false, json = false;
};

StepOptions parse(const std::vector<std::string>& args) {
  StepOptions options;
  const auto refuse = [](const std::string& what) {
    fail(ErrorKind::kArgument,
         {.what = "bench step: " + what +
                  "; wanted a configuration, steps=N, warmup=N, threads=N|all, link_delay_us=N, phases, json, or "
                  "section.key=value",
          .where = "command line",
          .why = {},
          .fix = "octet bench step configs/bench_tiny.yaml steps=7 precision.recipe=bf16 phases"});
  };
  for (const std::string& arg : args) {
    const size_t equals = arg.find('=');
    const std::string key = arg.substr(0, equals), value = equals == std::string::npos ? "" : arg.substr(equals + 1);
    const auto number = whole_number(value);
    if (equals == std::string::npos && arg == "phases") {
      options.phases = true;
    } else if (equals == std::string::npos && arg == "json") {
      options.json = true;
    } else if (equals == std::string::npos && options.config.empty()) {
      options.config = arg;
    } else if (key == "steps" && number && *number >= 1) {
      options.steps = *number;
    } else if (key == "warmup" && number) {
      options.warmup = *number;
    } else if (key == "link_delay_us" && number) {
      options.link_delay_us = *number;
    } else if (key == "threads" && (value == "all" || (number && *number >= 1))) {
      options.threads = number.value_or(0);
    } else if (key == "device" || key.find('.') != std::string::npos) {
      options.overrides.push_back(arg);
    } else {
      refuse(fmt::format("\"{}\" came", arg));
    }
  }
  if (options.config.empty()) refuse("no configuration came");
  return options;
}

int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t(usage.ru_maxrss) * 1024;
}

// Of a GPU, in bytes read and written a second, by its own clock: the best of six copies that no cache holds.
double copy_bandwidth_of(Device device) {
  constexpr int64_t kBytes = int64_t(256) << 20;
  const Tensor from = zeros({kBytes}, DType::kUInt8, MemoryCategory::kWorkspace, device), to = empty_like(from);
  double best = 0;
  for (int repeat = 0; repeat < 6; ++repeat) {
    gpu::Stopwatch stopwatch;
    stopwatch.start(from.stream());
    copy(from, to);
    stopwatch.stop(from.stream());
    best = std::max(best, 2.0 * double(kBytes) / stopwatch.seconds());
  }
  return best;
}

// Its kernels' own time; what the host did beside them is not in it.
void print_gpu_phases(const kernels::KernelProfile& profile, double total_seconds, int64_t steps, Device device) {
  const double bandwidth = copy_bandwidth_of(device), n = double(steps);
  fmt::print("\nA step by kernel, on the clock of {}. A copy moves {:.1f} GB/s there.\n\n", device, bandwidth * 1e-9);
  fmt::print("{:<22} {:>6} {:>9} {:>7} {:>9} {:>9} {:>9} {:>9} {:>8}\n", "kernel", "calls", "ms", "%", "GFLOP", "MB",
             "TFLOP/s", "GB/s", "of copy");
  double in_kernels = 0;
  for (const auto& row : profile.rows()) {
    const double flops = row.cost.float_flops + row.cost.pair_flops, per_second = 1 / std::max(row.seconds, 1e-9);
    fmt::print("{:<22} {:>6} {:>9.3f} {:>7.1f} {:>9.2f} {:>9.1f} {:>9.2f} {:>9.1f} {:>7.1f}%\n", row.cost.name,
               row.calls / steps, row.seconds / n * 1e3, 100 * row.seconds / total_seconds, flops / n * 1e-9,
               row.cost.bytes / n * 1e-6, flops * per_second * 1e-12, row.cost.bytes * per_second * 1e-9,
               100 * row.cost.bytes * per_second / bandwidth);
    in_kernels += row.seconds;
  }
  fmt::print("{:<22} {:>6} {:>9.3f} {:>7.1f}\n", "between kernels", "", (total_seconds - in_kernels) / n * 1e3,
             100 * (total_seconds - in_kernels) / total_seconds);
}

void print_phases(const kernels::KernelProfile& profile, double total_seconds, int64_t steps) {
  using kernels::Arithmetic;
  const double float_peak = kernels::measure_peak_flops(Arithmetic::kFloat32, default_stream(), real_clock());
  const double pair_peak = kernels::measure_peak_flops(Arithmetic::kBFloat16Pairs, default_stream(), real_clock());
  const double bandwidth = kernels::measure_copy_bandwidth(default_stream(), real_clock());
  fmt::print(
      "\nA step by kernel. Least: the operations at the peaks of {:.0f} GFLOP/s (float32) and {:.0f} (bfloat16 and\n"
      "FP8 pairs), or the bytes at the {:.1f} GB/s of a copy out of cache, whichever takes longer.\n\n",
      float_peak * 1e-9, pair_peak * 1e-9, bandwidth * 1e-9);
  fmt::print("{:<22} {:>6} {:>9} {:>7} {:>9} {:>9} {:>9} {:>11}\n", "kernel", "calls", "ms", "%", "GFLOP", "MB",
             "least ms", "x the least");
  double in_kernels = 0, least_of_all = 0;
  const auto print_row = [&](const char* name, const std::string& calls, double seconds, double flops, double bytes,
                             double least) {
    const double n = double(steps);
    fmt::print("{:<22} {:>6} {:>9.2f} {:>7.1f} {:>9.2f} {:>9.1f} {:>9.2f} {:>11}\n", name, calls, seconds / n * 1e3,
               100 * seconds / total_seconds, flops / n * 1e-9, bytes / n * 1e-6, least / n * 1e3,
               least > 0 ? fmt::format("{:.2f}", seconds / least) : "");
  };
  double all_flops = 0, all_bytes = 0;
  for (const auto& row : profile.rows()) {
    const double compute = row.cost.float_flops / float_peak + row.cost.pair_flops / pair_peak;
    const double least = std::max(compute, row.cost.bytes / bandwidth),
                 flops = row.cost.float_flops + row.cost.pair_flops;
    print_row(row.cost.name, std::to_string(row.calls / steps), row.seconds, flops, row.cost.bytes, least);
    in_kernels += row.seconds, least_of_all += least, all_flops += flops, all_bytes += row.cost.bytes;
  }
  print_row("between kernels", "", total_seconds - in_kernels, 0, 0, 0);
  print_row("the step", "", total_seconds, all_flops, all_bytes, least_of_all);
}

// seconds: of the steps that count. one_by_one: of steps after those, with a launch for each kernel, where those were
// CUDA graphs.
void print_result(const StepOptions& options, const Config& config, const std::vector<double>& seconds,
                  const std::vector<double>& one_by_one, const std::vector<double>& losses, int64_t resident,
                  int64_t sent_bytes, const kernels::KernelProfile* profile, Device device) {
  const int64_t S = config.data.seq_len, tokens = config.train.batch_size * S, dp = config.parallel.dp;
  const MemoryUse use = memory_use(device);
  const auto mib = [&use](MemoryCategory category) { return double(use.peak_bytes[size_t(category)]) / (1 << 20); };
  const double total = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  const Timing timing = timing_of(seconds);
  const double per_second = double(tokens) / timing.median;
  const double flops = per_second * training_flops_per_token(config.model, config.model.vocab_size, S);
  const int threads = default_thread_pool().num_threads();
  // What the processor's cores reach says nothing of a GPU: 0 there.
  const auto peak_of = [&](kernels::Arithmetic arithmetic) {
    if (!device.is_cpu()) return 0.0;
    return kernels::measure_peak_flops(arithmetic, default_stream(), real_clock());
  };
  if (options.json) {
    Json record = Json::object();
    record.set("config", options.config).set("recipe", std::string(name_of(config.precision.recipe)));
    record.set("isa", std::string(name_of(current_isa()))).set("threads", int64_t(threads));
    record.set("tokens_per_step", tokens).set("ms_median", timing.median * 1e3).set("ms_min", timing.least * 1e3);
    record.set("ms_max", timing.most * 1e3).set("tok_s", per_second).set("gflops", flops * 1e-9);
    record.set("ranks", dp).set("ep", config.parallel.ep).set("sent_bytes_per_step", sent_bytes);
    record.set("weights_mib", mib(MemoryCategory::kWeights)).set("gradients_mib", mib(MemoryCategory::kGradients));
    record.set("moments_mib", mib(MemoryCategory::kOptimizer));
    record.set("loss_first", losses.front()).set("loss_last", losses.back());
    record.set("peak_rss_mib", resident >> 20).set("is_graph", !one_by_one.empty());
    if (!one_by_one.empty()) record.set("ms_median_one_by_one", timing_of(one_by_one).median * 1e3);
    record.set("float32_peak_gflops", peak_of(kernels::Arithmetic::kFloat32) * 1e-9);
    record.set("bfloat16_pairs_peak_gflops", peak_of(kernels::Arithmetic::kBFloat16Pairs) * 1e-9);
    fmt::print("{}\n", record.text());
    return;
  }
  const double peak = peak_of(config.precision.recipe == Recipe::kFp32 ? kernels::Arithmetic::kFloat32
                                                                       : kernels::Arithmetic::kBFloat16Pairs);
  const std::string ranks = dp == 1 ? "" : fmt::format("{} ranks (ep {}) of ", dp, config.parallel.ep);
  fmt::print("{}: {}, {}{}, {} tokens a step\n", options.config, name_of(config.precision.recipe), ranks,
             describe(device), tokens);
  fmt::print(
      "{:.1f} ms a step, median of {} (spread {:.1f} %): {:.0f} tokens/s, {:.1f} GFLOP/s of the model's work,\n"
      "{}loss {:.4f} first, {:.4f} last; peak resident memory {} MiB\n",
      timing.median * 1e3, options.steps, 100 * timing.spread(), per_second, flops * 1e-9,
      peak > 0
          ? fmt::format("{:.1f} % of the peak of {:.0f}; ", 100 * flops / (peak * double(dp)), peak * double(dp) * 1e-9)
          : "",
      losses.front(), losses.back(), resident >> 20);
  if (!one_by_one.empty()) {
    const Timing by_kernel = timing_of(one_by_one);
    fmt::print("Each step is one CUDA graph; kernel by kernel it takes {:.1f} ms (spread {:.1f} %), {:.2f} of that.\n",
               by_kernel.median * 1e3, 100 * by_kernel.spread(), by_kernel.median / timing.median);
  }
  if (dp > 1) {
    fmt::print(
        "Rank 0 sends {:.2f} MiB a step and holds, at most, {:.1f} MiB of masters and weights, {:.1f} of gradients "
        "and\n"
        "{:.1f} of moments.\n",
        double(sent_bytes) / (1 << 20), mib(MemoryCategory::kWeights), mib(MemoryCategory::kGradients),
        mib(MemoryCategory::kOptimizer));
  }
  if (profile != nullptr && device.is_cpu()) print_phases(*profile, total, options.steps);
  if (profile != nullptr && !device.is_cpu()) print_gpu_phases(*profile, total, options.steps, device);
}

int bench_on(const StepOptions& options, const Config& config, Communicator& host_world) {
  const int64_t S = config.data.seq_len;
  const Device device = open_device(config.device);
  const auto of_gpus = make_gpu_communicator(&host_world, device, config.parallel);
  Communicator& world = of_gpus ? *of_gpus : host_world;
  const StepPlan plan = plan_step(config, world.rank());
  const Ranks ranks(world, config.parallel, config.model, device);
  Transformer model(config.model, config.precision, recompute_parts(config.train), S, ranks.make_dispatcher(), device);
  const auto shards = ranks.shard(model);
  AdamW optimizer(model.parameters(), config.optim, moments_dtype(config.precision), &world);
  model.init_weights(uint64_t(config.train.seed));
  shards->gather_weights();
  const StepRanks together{.world = &world, .shards = shards.get()};
  const auto sent = [&] {
    int64_t bytes = world.traffic().bytes();
    for (const Communicator* group : ranks.groups()) bytes += group->traffic().bytes();
    return bytes;
  };
  int64_t sent_bytes = 0;  // of the last step: what dispatch sends depends on the routing
  StepTokens tokens(plan, device);
  const StepLosses step_losses(plan, device);
  std::optional<kernels::KernelProfile> profile;
  StepGraph graph(device, config.train.cuda_graph, world.size()), no_graph(device, CudaGraph::kOff, world.size());
  std::vector<double> seconds, one_by_one, losses;
  const auto run_step = [&](int64_t step, StepGraph& launched_by) {
    std::vector<Batch> batches;
    for (int64_t m = plan.first; m < plan.first + plan.count; ++m) {
      batches.push_back(made_up_batch(1, step * plan.micro_batches + m, plan.sequences, S, config.model.vocab_size));
    }
    world.barrier();
    const int64_t sent_before = sent();
    const int64_t begin_ns = real_clock().monotonic_ns();
    tokens.fill([&](int64_t m) { return batches[size_t(m - plan.first)]; });
    optimizer.prepare(step, config.optim.lr);
    const auto sum = [&] { losses.push_back(sum_step(model, optimizer, plan, step_losses, together).loss); };
    if (world.size() > 1) {
      run_micro_batches(
          model, plan, [&](int64_t m) { return tokens.of(m); }, step_losses, together);
      optimizer.measure();
      sum();
      apply_update(model, optimizer, step_losses, nullptr, together);
    } else {
      ask_for_step(launched_by, model, optimizer, plan, tokens, step_losses, nullptr, together);
      sum();
    }
    if (!device.is_cpu()) gpu::synchronize(default_stream(device));
    sent_bytes = sent() - sent_before;
    return double(real_clock().monotonic_ns() - begin_ns) * 1e-9;
  };
  const int64_t last = options.warmup + options.steps;
  for (int64_t step = 1; step <= last; ++step) {
    if (options.phases && step == options.warmup + 1) profile.emplace(real_clock());
    const int64_t launches_before = graph.launches();
    const double took = run_step(step, graph);
    if (step > options.warmup) seconds.push_back(took);
    const bool is_graph = graph.launches() > launches_before;
    if (step < last || !is_graph) continue;
    for (int64_t more = 1; more <= options.warmup + options.steps; ++more) {
      const double by_kernel = run_step(last + more, no_graph);
      if (more > options.warmup) one_by_one.push_back(by_kernel);
    }
  }
  const int64_t resident = peak_resident_bytes();
  if (world.rank() == 0) {
    print_result(options, config, seconds, one_by_one, losses, resident, sent_bytes, profile ? &*profile : nullptr,
                 device);
  }
  return 0;
}

}  // namespace

int bench_step(const std::vector<std::string>& args) {
  const StepOptions options = parse(args);
  const Config config = load_config(real_file_system(), options.config, options.overrides);
  require(ErrorKind::kConfig, config.model.vocab_size > 0,
          "bench step: {} leaves model.vocab_size to its tokenizer; set it: model.vocab_size=8192", options.config);
  if (!is_mpi_rank()) {
    set_num_threads(int(options.threads));
    return bench_on(options, config, *make_self_communicator());
  }
  set_num_threads(options.threads > 0 ? int(options.threads) : threads_of_rank());
  return run_as_rank(
      {.run_dir = {}, .communicator = {.timeout_s = config.parallel.timeout_s, .link_delay_us = options.link_delay_us}},
      [] {}, [&](Communicator& world) { return bench_on(options, config, world); });
}

}  // namespace octet
