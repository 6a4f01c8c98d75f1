#include "tools/bench/moe_layer_bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string_view>

#include "core/autograd/tape.h"
#include "core/base/clock.h"
#include "core/nn/init.h"
#include "core/nn/moe_layer.h"
#include "core/nn/precision_config.h"
#include "core/nn/wgrad_tiles.h"
#include "kernels/kernel_profile.h"
#include "tools/bench/made_up_tensors.h"
#include "tools/bench/whole_number.h"
#include "tools/train/device.h"
#include "tools/train/timing.h"

namespace octet {
namespace {

struct LayerSize {
  int64_t tokens, hidden, expert_hidden, experts, top_k;
};
constexpr LayerSize kOnCpu = {.tokens = 1024, .hidden = 512, .expert_hidden = 256, .experts = 16, .top_k = 4};
// arXiv:2512.14080, figure 14.
constexpr LayerSize kPublished[] = {{40960, 768, 256, 128, 8},   {24576, 1536, 256, 128, 8}, {24576, 1536, 1024, 32, 2},
                                    {32768, 4096, 256, 256, 16}, {32768, 4096, 512, 128, 8}, {32768, 4096, 1024, 64, 4},
                                    {32768, 4096, 1024, 128, 8}, {32768, 4096, 2048, 64, 4}};

struct Options {
  DeviceType device = DeviceType::kCpu;
  std::vector<LayerSize> shapes = {kOnCpu};
  int64_t repeats = 9;
};

Options parse(const std::vector<std::string>& args) {
  Options options;
  const auto refuse = [](const std::string& what) {
    fail(ErrorKind::kArgument, {.what = "bench moe-layer: " + what +
                                        "; wanted device=cpu|cuda, tokens=N, hidden=N, expert_hidden=N, experts=N, "
                                        "top_k=N or repeats=N",
                                .where = "command line",
                                .why = {},
                                .fix = "octet bench moe-layer tokens=1024 hidden=512"});
  };
  LayerSize shape = kOnCpu;
  bool has_shape = false;
  for (const std::string& arg : args) {
    if (arg == "device=cuda" || arg == "device=cpu") {
      options.device = arg == "device=cuda" ? DeviceType::kCuda : DeviceType::kCpu;
    } else if (take_number(arg, {{"tokens", &shape.tokens},
                                 {"hidden", &shape.hidden},
                                 {"expert_hidden", &shape.expert_hidden},
                                 {"experts", &shape.experts},
                                 {"top_k", &shape.top_k}})) {
      has_shape = true;
    } else if (!take_number(arg, {{"repeats", &options.repeats}})) {
      refuse(fmt::format("\"{}\" came", arg));
    }
  }
  if (shape.top_k > shape.experts) refuse(fmt::format("top_k is {} of {} experts", shape.top_k, shape.experts));
  if (has_shape) {
    options.shapes = {shape};
  } else if (options.device == DeviceType::kCuda) {
    options.shapes.assign(std::begin(kPublished), std::end(kPublished));
  }
  return options;
}

// Every expert has as many tokens as any other, give or take one, and those of a token are far apart.
Tensor balanced_choices(const LayerSize& shape, Device device) {
  std::vector<int32_t> order(static_cast<size_t>(shape.tokens)), choices;
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  for (const int32_t place : order) {
    for (int64_t k = 0; k < shape.top_k; ++k) {
      choices.push_back(int32_t((place + k * (shape.experts / shape.top_k)) % shape.experts));
    }
  }
  return from_vector(choices, {shape.tokens, shape.top_k}, device);
}

// What is compared, the first with each of the others.
struct Form {
  const char* name;
  Recipe recipe;
  WgradOperands wgrad;
  bool swiglu_in_gemm = false;
};
constexpr Form kForms[] = {{"bf16", Recipe::kBf16, WgradOperands::kColumns},
                           {"fp8_block", Recipe::kFp8Block, WgradOperands::kColumns},
                           {"  tiles", Recipe::kFp8Block, WgradOperands::kTiles},
                           {"  in gemm", Recipe::kFp8Block, WgradOperands::kColumns, /*swiglu_in_gemm=*/true}};
constexpr size_t kNumForms = std::size(kForms), kFp8Block = 1;
// A CPU has no kernel for the last.
size_t num_forms(Device device) { return device.is_cpu() ? kNumForms - 1 : kNumForms; }

// A layer in one form, and what it made of the first tokens.
class Subject {
 public:
  Subject(const LayerSize& shape, const Form& form, Device device)
      : device_(device),
        config_(config_of(shape)),
        context_{.numerics = {.recipe = form.recipe, .emulation = emulation_on(device, Fp8Arithmetic::kAuto)},
                 .recompute = {},
                 .device = device},
        layer_("mlp.", config_, context_, dispatcher_) {
    layer_.visit_parameters([](Parameter& parameter) {
      init_normal(parameter, 1, 0.02f);
      parameter.refresh();
    });
    if (form.wgrad != WgradOperands::kTiles) return;
    std::vector<Parameter*> parameters;
    layer_.visit_parameters([&parameters](Parameter& parameter) { parameters.push_back(&parameter); });
    tiles_.emplace(parameters, /*limit=*/1.0, device);
  }

  // Weights that a pass reads transposed are so by calls of their own, which a profile sees, and not inside of
  // products.
  void transpose_apart(bool yes) {
    layer_.visit_parameters([&](Parameter& parameter) {
      if (parameter.is_read_transposed(device_.type, context_.numerics.emulation)) parameter.keep_transposed(yes);
    });
  }

  // What a pass takes beside weights, their gradients and its own input and output gradient.
  struct Pass {
    double forward_s = 0, backward_s = 0;
    int64_t peak_bytes = 0;
    Tensor y, dx;
  };
  Pass run(const Tensor& x, const Tensor& dy, const Tensor& choices, bool swiglu_in_gemm) {
    context_.swiglu_in_gemm.experts = swiglu_in_gemm;
    Pass pass;
    const Recording on(true);
    Stream& stream = default_stream(device_);
    reset_peak_memory(device_);
    const int64_t before = memory_use(device_).peak_total_bytes;
    const Tensor source = make_source(x, [&pass](const Tensor& dx) { pass.dx = dx; });
    pass.forward_s =
        seconds_of([&] { pass.y = layer_.forward(LinearInput(source, context_.numerics), choices); }, stream);
    pass.backward_s = seconds_of([&] { backward(std::exchange(pass.y, pass.y.detach()), dy); }, stream);
    pass.peak_bytes = memory_use(device_).peak_total_bytes - before;
    return pass;
  }

 private:
  static ModelConfig config_of(const LayerSize& shape) {
    ModelConfig config;
    config.hidden = shape.hidden;
    config.moe.num_experts = shape.experts;
    config.moe.top_k = shape.top_k;
    config.moe.expert_hidden = shape.expert_hidden;
    config.moe.shared_experts = 0;
    config.moe.aux_loss = AuxLoss::kNone;
    return config;
  }

  Device device_;
  ModelConfig config_;
  ModelContext context_;
  LocalDispatcher dispatcher_;
  MoeLayer layer_;
  std::optional<WgradTiles> tiles_;
};

// Of the first rows, which is enough to see a wrong kernel and little to move.
std::vector<double> first_rows(const Tensor& x) {
  constexpr int64_t kRows = 512;
  std::vector<double> values;
  for (const bfloat16 value : to_vector<bfloat16>(x.slice_rows(0, std::min(kRows, x.rows())))) {
    values.push_back(double(float(value)));
  }
  return values;
}

// 1 - 2 a.b / (a.a + b.b): half of the squared relative error.
double calc_diff(const std::vector<double>& a, const std::vector<double>& b) {
  double ab = 0, squares = 0;
  for (size_t i = 0; i < a.size(); ++i) ab += a[i] * b[i], squares += a[i] * a[i] + b[i] * b[i];
  return squares > 0 ? 1 - 2 * ab / squares : 0;
}

// What only changes the format or the order of numbers. Norms, gathers and SwiGLU that make codes compute something
// too.
constexpr std::string_view kCasts[] = {"cast",
                                       "quantize_rows",
                                       "quantize_columns",
                                       "quantize_blocks",
                                       "requantize_columns",
                                       "requantize_tiles",
                                       "dequantize_rows",
                                       "transpose_codes"};

// Percent of the time that kernels take in some passes.
template <class Run>
double percent_of_casts(Subject& subject, Run&& run) {
  constexpr int kPasses = 3;
  const kernels::KernelProfile profile(real_clock());
  for (int pass = 0; pass < kPasses; ++pass) {
    subject.transpose_apart(true);
    run();
    subject.transpose_apart(false);
  }
  double all = 0, casts = 0;
  for (const auto& row : profile.rows()) {
    all += row.seconds;
    if (std::ranges::find(kCasts, std::string_view(row.cost.name)) != std::end(kCasts)) casts += row.seconds;
  }
  return all > 0 ? 100 * casts / all : 0;
}

// Four roundings to E4M3 on the way forward and six on the way back, each of about 2.6 % of its numbers, give 2e-3 to
// 3e-3; a wrong scale or row gives more than ten times as much.
constexpr double kMostDifferent = 1e-2;

bool bench_shape(const LayerSize& shape, int64_t repeats, Device device) {
  const Tensor x = made_up_normal({shape.tokens, shape.hidden}, DType::kBFloat16, "x", device),
               choices = balanced_choices(shape, device);
  const Tensor dy = made_up_normal({shape.tokens, shape.hidden}, DType::kBFloat16, "dy", device);
  // Between two passes something else is read, so that none finds its weights in a cache.
  const Tensor others = zeros({int64_t(128) << 20}, DType::kUInt8, device);
  std::shared_ptr<Subject> subjects[kNumForms];
  std::vector<double> forward_s[kNumForms], backward_s[kNumForms], both_s[kNumForms], y[kNumForms], dx[kNumForms];
  int64_t peak_bytes[kNumForms] = {};
  const size_t forms = num_forms(device);
  const auto run = [&](size_t i) { return subjects[i]->run(x, dy, choices, kForms[i].swiglu_in_gemm); };
  for (size_t i = 0; i < forms; ++i) {
    subjects[i] = kForms[i].swiglu_in_gemm ? subjects[kFp8Block] : std::make_shared<Subject>(shape, kForms[i], device);
    const Subject::Pass pass = run(i);
    y[i] = first_rows(pass.y), dx[i] = first_rows(pass.dx), peak_bytes[i] = pass.peak_bytes;
  }
  for (int64_t repeat = 0; repeat < repeats; ++repeat) {
    for (size_t i = 0; i < forms; ++i) {
      fill_zero(others);
      const Subject::Pass pass = run(i);
      forward_s[i].push_back(pass.forward_s), backward_s[i].push_back(pass.backward_s);
      both_s[i].push_back(pass.forward_s + pass.backward_s);
    }
  }
  const double flops = 6.0 * double(shape.tokens * shape.top_k) * double(shape.hidden * shape.expert_hidden);
  bool is_wrong = false;
  fmt::print("T{} d{} n{} E{} K{}\n", shape.tokens, shape.hidden, shape.expert_hidden, shape.experts, shape.top_k);
  const double of_bf16 = timing_of(both_s[0]).median;
  for (size_t i = 0; i < forms; ++i) {
    const Timing forward = timing_of(forward_s[i]), back = timing_of(backward_s[i]), both = timing_of(both_s[i]);
    fmt::print("  {:<10} {:>9.3f} {:>9.1f} {:>9.3f} {:>9.1f} {:>7.1f}% {:>9.2f} {:>7.1f} {:>9.1f}", kForms[i].name,
               forward.median * 1e3, flops / forward.median * 1e-9, back.median * 1e3, 2 * flops / back.median * 1e-9,
               100 * both.spread(), of_bf16 / both.median, percent_of_casts(*subjects[i], [&] { run(i); }),
               double(peak_bytes[i]) / (1 << 20));
    if (i > 0) {
      const double off_y = calc_diff(y[i], y[0]), off_dx = calc_diff(dx[i], dx[0]);
      const bool has_other_bits = kForms[i].swiglu_in_gemm && y[i] != y[kFp8Block];
      const bool is_off = !(off_y <= kMostDifferent && off_dx <= kMostDifferent) || has_other_bits;
      fmt::print(" {:>9.1e} {:>9.1e}{}", off_y, off_dx, is_off ? "  WRONG" : "");
      is_wrong = is_wrong || is_off;
    }
    fmt::print("\n");
  }
  return !is_wrong;
}

}  // namespace

int bench_moe_layer(const std::vector<std::string>& args) {
  const Options options = parse(args);
  const Device device = open_device(options.device);
  fmt::print(
      "{}; T tokens of width d to K of E experts of width n, each with as many rows; medians of {}\n"
      "GFLOP/s of 6 T K d n forward and twice that backward; x bf16: how much faster than bf16, both ways together;\n"
      "casts: percent of the kernels' time in those that only quantise, cast or transpose;\n"
      "MiB: the most that a pass holds beside weights and their gradients; off: 1 - 2 a.b / (a.a + b.b) of the output\n"
      "and of the input's gradient, a and b those of this form and of bf16; tiles: weight gradients of 128x128 "
      "tiles;\nin gemm: SwiGLU and its codes made by the first product, with the bits of fp8_block\n\n",
      describe(device), options.repeats);
  fmt::print("  {:<10} {:>9} {:>9} {:>9} {:>9} {:>8} {:>9} {:>7} {:>9} {:>9} {:>9}\n", "", "fwd ms", "GFLOP/s",
             "bwd ms", "GFLOP/s", "spread", "x bf16", "casts", "MiB", "off y", "off dx");
  int failures = 0;
  for (const LayerSize& shape : options.shapes) failures += !bench_shape(shape, options.repeats, device);
  return failures == 0 ? 0 : 1;
}

}  // namespace octet
