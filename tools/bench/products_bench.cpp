#include "tools/bench/products_bench.h"

#include <fmt/core.h>

#include "core/base/thread_pool.h"
#include "tools/bench/whole_number.h"
#include "tools/train/device.h"
#include "tools/train/faster_products.h"
#include "tools/train/timing.h"
#include "tools/train/yaml_reader.h"

namespace octet {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> overrides;
  int64_t repeats = 3;
};

Options parse(const std::vector<std::string>& args) {
  Options options;
  const auto refuse = [](const std::string& what) {
    fail(ErrorKind::kArgument,
         {.what = "bench products: " + what + "; wanted a configuration, repeats=N, device=D or section.key=value",
          .where = "command line",
          .why = {},
          .fix = "octet bench products configs/bench_tiny.yaml train.micro_batch=4"});
  };
  for (const std::string& arg : args) {
    const size_t equals = arg.find('=');
    if (equals == std::string::npos && options.config.empty()) {
      options.config = arg;
    } else if (arg.substr(0, equals) == "device" || arg.substr(0, equals).find('.') != std::string::npos) {
      options.overrides.push_back(arg);
    } else if (!take_number(arg, {{"repeats", &options.repeats}})) {
      refuse(fmt::format("\"{}\" came", arg));
    }
  }
  if (options.config.empty()) refuse("no configuration came");
  return options;
}

}  // namespace

int bench_products(const std::vector<std::string>& args) {
  const Options options = parse(args);
  const Config config = load_config(real_file_system(), options.config, options.overrides);
  if (config.train.threads > 0) set_num_threads(int(config.train.threads));
  const Device device = open_device(config.device);
  const kernels::Emulation emulation = emulation_on(device, config.precision.emulation);
  fmt::print("{}; forward and backward, medians of {} in turn; {} arithmetic\n\n", describe(device), options.repeats,
             name_of(emulation));
  std::vector<LayerTimes> times;
  ProductFormats faster;
  for (const TimedLayer& layer : timed_layers(config)) {
    const bool has_forms = is_swiglu_form_open(device) && has_swiglu_forms(layer);
    std::vector<double> fp8_s, bf16_s, in_gemm_s;
    for (int64_t repeat = 0; repeat < options.repeats; ++repeat) {
      const auto time_of = [&](TimedForm form) { return time_layer(layer, form, config.precision, device, [] {}); };
      fp8_s.push_back(time_of(TimedForm::kFp8)), bf16_s.push_back(time_of(TimedForm::kBf16));
      if (has_forms) in_gemm_s.push_back(time_of(TimedForm::kFp8InGemm));
    }
    times.push_back({.layer = layer,
                     .fp8_s = timing_of(fp8_s).median,
                     .bf16_s = timing_of(bf16_s).median,
                     .in_gemm_s = has_forms ? timing_of(in_gemm_s).median : 0});
    faster.layers.*layer.products.format = times.back().faster();
  }
  for (const std::string& line : table_of(times, faster)) fmt::print("{}\n", line);
  return 0;
}

}  // namespace octet
