#include "tools/bench/bench.h"

#include <algorithm>

#include "core/base/error.h"
#include "tools/bench/dispatch_bench.h"
#include "tools/bench/fused_quantise_bench.h"
#include "tools/bench/gemm_bench.h"
#include "tools/bench/grouped_gemm_bench.h"
#include "tools/bench/kernel_bench.h"
#include "tools/bench/moe_layer_bench.h"
#include "tools/bench/products_bench.h"
#include "tools/bench/step_bench.h"

namespace octet {
namespace {

struct Benchmark {
  const char* name;
  const char* help;
  int (*run)(const std::vector<std::string>& args);
};
int quantise(const std::vector<std::string>& args) {
  const bool names_device =
      std::any_of(args.begin(), args.end(), [](const std::string& arg) { return arg.starts_with("device="); });
  return names_device ? bench_fused_quantise(args) : bench_quantise(args);
}

constexpr Benchmark kBenchmarks[] = {
    {"gemm",
     "matrix products of each precision and emulation; args: MxNxK..., repeats=N, threads=1|all, caches=cold|warm",
     bench_gemm},
    {"quantise",
     "FP8 quantisation against a copy; args: RxC..., repeats=N, threads=1|all, caches=cold|warm; or, of what a layer "
     "of experts fuses: "
     "device=cpu|cuda, tokens=N, hidden=N, experts=N, top_k=N, expert_hidden=N, repeats=N",
     quantise},
    {"grouped-gemm",
     "experts' products in FP8 and bfloat16 against a dense bfloat16 one; args: device=cpu|cuda, GxMxNxK..., "
     "repeats=N, "
     "peak=N (rows, columns and k of the products whose speed is a GPU's peak)",
     bench_grouped_gemm},
    {"kernels",
     "each kernel of a step against a copy of its bytes; args: device=cpu|cuda, tokens=N, hidden=N, experts=N, "
     "top_k=N, "
     "expert_hidden=N, vocab=N, repeats=N",
     bench_kernels},
    {"moe-layer",
     "a layer of experts in bf16 and fp8_block in turn: speed, memory, difference; args: device=cpu|cuda, tokens=N, "
     "hidden=N, expert_hidden=N, experts=N, top_k=N, repeats=N; on a GPU without sizes: the published shapes",
     bench_moe_layer},
    {"products",
     "the products of a configuration's layers in fp8 and bf16, as precision.products: faster times them; args: "
     "CONFIG, repeats=N, device=cpu|cuda, section.key=value...",
     bench_products},
    {"step",
     "a training step on made-up tokens, under mpirun on its ranks; args: CONFIG, steps=N, warmup=N, threads=N|all, "
     "link_delay_us=N (each message is held back), section.key=value..., phases, json",
     bench_step},
    {"dispatch",
     "under mpirun: tokens to experts and back, against MPI_Alltoallv of the bytes; args: tokens=N, hidden=N, "
     "experts=N, top_k=N, repeats=N, wire=fp8|bf16",
     bench_dispatch},
};

}  // namespace

std::vector<std::string> bench_names() {
  std::vector<std::string> names;
  for (const Benchmark& benchmark : kBenchmarks) names.emplace_back(benchmark.name);
  return names;
}

std::string bench_help() {
  std::string text = "Benchmarks:\n";
  for (const Benchmark& benchmark : kBenchmarks) text += fmt::format("  {:<12} {}\n", benchmark.name, benchmark.help);
  return text;
}

int run_bench(const std::string& name, const std::vector<std::string>& args) {
  for (const Benchmark& benchmark : kBenchmarks) {
    if (benchmark.name == name) return benchmark.run(args);
  }
  fail(ErrorKind::kArgument, {.what = "there is no benchmark " + name,
                              .where = "octet bench",
                              .why = {},
                              .fix = "octet help bench lists them"});
}

}  // namespace octet
