#include "tools/train/faster_products.h"

#include <cmath>
#include <cstdlib>
#include <map>
#include <utility>

#include "core/autograd/tape.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "core/io/json.h"
#include "core/nn/attention_layer.h"
#include "core/nn/wgrad_tiles.h"
#include "core/ops/linear.h"
#include "core/ops/swiglu_ffn.h"
#include "core/tensor/transfer.h"
#include "kernels/device_runtime.h"
#include "tools/train/device.h"
#include "tools/train/timing.h"

namespace octet {
namespace {

// Numbers about zero, which repeat: zeros would take less power, and so less time, than those of a model.
template <class T>
void fill_made_up(const Tensor& x, float size) {
  const Tensor flat = x.reshape({x.num_elements()});
  const int64_t n = flat.size(0), period = std::min<int64_t>(n, 65521);
  const RandomStream random(1, "products");
  std::vector<T> pattern;
  for (int64_t i = 0; i < period; ++i) pattern.push_back(T(size * random.normal(uint64_t(i))));
  copy(from_vector(pattern, {period}), flat.slice_rows(0, period));
  for (int64_t done = period; done < n;) {
    const int64_t part = std::min(done, n - done);
    copy(flat.slice_rows(0, part), flat.slice_rows(done, part));
    done += part;
  }
}

class Weight {
 public:
  Weight(int64_t groups, int64_t out, int64_t in, Recipe recipe, Device device)
      : parameter_("timed", groups == 1 ? Shape{out, in} : Shape{groups, out, in}, linear_form(recipe),
                   /*decays=*/false, device) {
    fill_made_up<float>(parameter_.master(), 0.02f);
    parameter_.refresh();
  }
  Parameter& get() { return parameter_; }

 private:
  Parameter parameter_;
};

RowGroups even_groups(int64_t groups, int64_t rows, Device device) {
  if (groups == 1) return RowGroups::dense(rows, device);
  std::vector<int64_t> offsets;
  for (int64_t g = 0; g <= groups; ++g) offsets.push_back(rows * g / groups);
  return RowGroups::of_offsets(from_vector(offsets, {groups + 1}, device), Tensor(), rows);
}

std::string key_of(const Config& config, const TimedLayer& layer, Device device) {
  return fmt::format("{}; octet {}; {}; {}; {} arithmetic{}", describe(device), OCTET_VERSION, layer.products.name,
                     layer.shape(), name_of(emulation_on(device, config.precision.emulation)),
                     config.precision.wgrad == WgradOperands::kTiles ? "; wgrad of tiles" : "");
}

// {"version": 1, "seconds": {key: {"fp8": 1.5e-3, "bf16": 2.5e-3, "fp8_in_gemm": 1.25e-3}}}, the last where it was
// measured.
class TimesFile {
 public:
  TimesFile(FileSystem& files, std::string path) : files_(files), path_(std::move(path)) {
    if (path_.empty()) return;
    try {
      if (files_.exists(path_)) read();
    } catch (const Error& error) {
      known_.clear();
      log_warning("the times of products in {} are of no use, and are measured again: {}", path_, error.report().what);
    }
  }

  struct Seconds {
    double fp8 = 0, bf16 = 0, in_gemm = 0;
  };
  const Seconds* find(const std::string& key) const {
    const auto found = known_.find(key);
    return found == known_.end() ? nullptr : &found->second;
  }
  void add(const std::string& key, Seconds seconds) {
    known_[key] = seconds;
    has_changed_ = true;
  }
  void write() {
    if (path_.empty() || !has_changed_) return;
    Json times = Json::object(), all = Json::object();
    for (const auto& [key, seconds] : known_) {
      Json entry = Json::object();
      entry.set("fp8", seconds.fp8).set("bf16", seconds.bf16);
      if (seconds.in_gemm > 0) entry.set("fp8_in_gemm", seconds.in_gemm);
      times.set(key, std::move(entry));
    }
    all.set("version", 1).set("seconds", std::move(times));
    try {
      files_.make_directories(directory_of(path_));
      files_.write_atomically(path_, all.text(2));
    } catch (const Error& error) {
      log_warning("the times of products are not remembered: {}", error.report().what);
    }
  }

 private:
  static constexpr uint64_t kMostBytes = uint64_t(1) << 20;

  void read() {
    const JsonSource source{.kind = ErrorKind::kData, .file = path_};
    const Json json = parse_json(files_.read_text(path_, kMostBytes), source);
    const JsonCursor all(json, source);
    all.allow_keys({"version", "seconds"});
    all["version"].as_int64(1, 1);
    const JsonCursor times = all["seconds"];
    if (times.value().if_object() == nullptr) times.refuse("is not an object");
    const auto time_of = [](const JsonCursor& number) {
      const double seconds = number.as_double();
      if (!(seconds > 0 && std::isfinite(seconds))) number.refuse("is not a time");
      return seconds;
    };
    for (const auto& [key, value] : *times.value().if_object()) {
      const JsonCursor of_layer = times[key];
      Seconds& seconds = known_[key] = {.fp8 = time_of(of_layer["fp8"]), .bf16 = time_of(of_layer["bf16"])};
      if (const auto in_gemm = of_layer.find("fp8_in_gemm")) seconds.in_gemm = time_of(*in_gemm);
    }
  }

  FileSystem& files_;
  std::string path_;
  std::map<std::string, Seconds> known_;
  bool has_changed_ = false;
};

}  // namespace

std::string TimedLayer::shape() const {
  std::string text = groups == 1 ? "" : fmt::format("{} groups, ", groups);
  text += fmt::format("{} rows, {} to {}", rows, in, inner == 0 ? out : inner);
  return inner == 0 ? text : text + " and back";
}

std::vector<TimedLayer> timed_layers(const Config& config) {
  const ModelConfig& model = config.model;
  const MoeConfig& moe = model.moe;
  const int64_t T = config.sequences_per_micro_batch() * config.data.seq_len, D = model.hidden;
  const int64_t q = model.heads * model.head_width(), kv = model.num_kv_heads() * model.head_width();
  const int64_t of_experts = model.num_moe_layers(), dense = model.layers - of_experts;
  std::vector<TimedLayer> layers;
  const auto linear = [&](const ProductLayer& products, int64_t in, int64_t out) {
    layers.push_back({.products = products, .count = model.layers, .groups = 1, .rows = T, .in = in, .out = out});
  };
  const auto feed_forward = [&](const ProductLayer& products, int64_t count, int64_t groups, int64_t rows,
                                int64_t inner) {
    if (count == 0 || inner == 0) return;
    layers.push_back(
        {.products = products, .count = count, .groups = groups, .rows = rows, .in = D, .out = D, .inner = inner});
  };
  linear(kQkvProj, D, q + 2 * kv);
  linear(kOProj, q, D);
  feed_forward(kDense, dense, 1, T, model.ffn_hidden);
  feed_forward(kSharedExperts, of_experts, 1, T, moe.shared_experts * moe.expert_hidden);
  feed_forward(kExperts, of_experts, moe.num_experts / config.parallel.ep, T * moe.top_k, moe.expert_hidden);
  return layers;
}

double time_layer(const TimedLayer& layer, TimedForm form, const PrecisionConfig& precision, Device device,
                  const std::function<void()>& progress) {
  constexpr int kWarmUps = 2, kRuns = 5;
  const Recipe recipe = form == TimedForm::kBf16 ? Recipe::kBf16 : Recipe::kFp8Block;
  const SwigluOptions options{.in_gemm = form == TimedForm::kFp8InGemm};
  const Numerics numerics{.recipe = recipe, .emulation = emulation_on(device, precision.emulation)};
  const bool is_ffn = layer.inner > 0;
  Weight first(layer.groups, is_ffn ? 2 * layer.inner : layer.out, layer.in, recipe, device);
  std::optional<Weight> second;
  if (is_ffn) second.emplace(layer.groups, layer.out, layer.inner, recipe, device);
  std::optional<WgradTiles> tiles;
  if (recipe == Recipe::kFp8Block && precision.wgrad == WgradOperands::kTiles) {
    std::vector<Parameter*> weights = {&first.get()};
    if (second) weights.push_back(&second->get());
    tiles.emplace(std::move(weights), precision.wgrad_underflow_limit, device);
  }
  const Tensor x = empty({layer.rows, layer.in}, DType::kBFloat16, device);
  const Tensor dy = empty({layer.rows, layer.out}, DType::kBFloat16, device);
  fill_made_up<bfloat16>(x, 1.0f);
  fill_made_up<bfloat16>(dy, 1e-3f);
  const RowGroups groups = even_groups(layer.groups, layer.rows, device);
  const Recording on(true);
  std::vector<double> seconds;
  for (int run = 0; run < kWarmUps + kRuns; ++run) {
    const double took = seconds_of(
        [&] {
          const LinearInput input(make_source(x, [](const Tensor&) {}), numerics);
          const Tensor y = is_ffn ? swiglu_ffn(input, groups, {}, first.get(), second->get(), options)
                                  : linear(input, first.get(), DType::kBFloat16);
          backward(y, dy);
        },
        x.stream());
    if (run >= kWarmUps) seconds.push_back(took);
    progress();
  }
  return timing_of(seconds).median;
}

bool is_swiglu_form_open(Device device) {
  return !device.is_cpu() && !gpu::runtime().is_emulated && swiglu_in_gemm() == Wanted::kAuto;
}
bool has_swiglu_forms(const TimedLayer& layer) { return layer.inner > 0 && layer.inner % 128 == 0; }

std::vector<std::string> table_of(const std::vector<LayerTimes>& times, const ProductFormats& used) {
  const auto line = [](std::string_view name, std::string_view size, double fp8_s, double bf16_s,
                       std::string_view rest) {
    return fmt::format("{:<16} {:<44} {:>9.3f} {:>9.3f} {:>9.2f}  {}", name, size, fp8_s * 1e3, bf16_s * 1e3,
                       bf16_s / fp8_s, rest);
  };
  std::vector<std::string> lines = {
      fmt::format("{:<16} {:<44} {:>9} {:>9} {:>9}  {}", "layer", "size", "fp8 ms", "bf16 ms", "bf16/fp8", "used")};
  double fp8_s = 0, bf16_s = 0, used_s = 0;
  for (const LayerTimes& of : times) {
    const LayerFormat format = format_of(used, of.layer.products);
    const auto count = double(of.layer.count);
    fp8_s += count * of.best_fp8_s(), bf16_s += count * of.bf16_s;
    used_s += count * (format == LayerFormat::kFp8 ? of.best_fp8_s() : of.bf16_s);
    std::string rest(name_of(format));
    if (format == LayerFormat::kFp8 && of.in_gemm_s > 0) {
      rest += of.is_faster_in_gemm() ? fmt::format(", swiglu in the product ({:.3f} apart)", of.fp8_s * 1e3)
                                     : fmt::format(", swiglu apart ({:.3f} in the product)", of.in_gemm_s * 1e3);
    }
    if (of.is_remembered) rest += ", measured before";
    lines.push_back(line(of.layer.products.name, of.layer.shape(), of.best_fp8_s(), of.bf16_s, rest));
  }
  if (!times.empty()) {
    lines.push_back(line("all of these", "as many as the model has", fp8_s, bf16_s,
                         fmt::format("{:.3f} ms as they are used", used_s * 1e3)));
  }
  return lines;
}

bool is_measured(ProductFormat wanted, Device device) {
  if (wanted == ProductFormat::kFaster) return true;
  return wanted == ProductFormat::kAuto && !device.is_cpu() && !gpu::runtime().is_emulated;
}

DecidedProducts decide_products(const Config& config, const std::optional<ProductFormats>& earlier, Device device,
                                bool swiglu_form_is_open, FileSystem& files, const std::string& file,
                                const TimeLayer& time) {
  DecidedProducts decided{.formats = config.precision.products, .swiglu_in_gemm = {}, .times = {}};
  std::optional<TimesFile> known;
  const auto times_of = [&](const TimedLayer& layer) {
    if (!known) known.emplace(files, file);
    const std::string key = key_of(config, layer, device);
    const TimesFile::Seconds* const found = known->find(key);
    const bool has_forms = swiglu_form_is_open && has_swiglu_forms(layer);
    const bool is_remembered = found != nullptr && (found->in_gemm > 0 || !has_forms);
    TimesFile::Seconds seconds = found != nullptr ? *found : TimesFile::Seconds{};
    if (found == nullptr) seconds.fp8 = time(layer, TimedForm::kFp8), seconds.bf16 = time(layer, TimedForm::kBf16);
    if (has_forms && seconds.in_gemm == 0) seconds.in_gemm = time(layer, TimedForm::kFp8InGemm);
    if (!is_remembered) known->add(key, seconds);
    return LayerTimes{.layer = layer,
                      .fp8_s = seconds.fp8,
                      .bf16_s = seconds.bf16,
                      .in_gemm_s = has_forms ? seconds.in_gemm : 0,
                      .is_remembered = is_remembered};
  };
  const std::vector<TimedLayer> layers = timed_layers(config);
  for (const ProductLayer& products : kProductLayers) {
    LayerFormat& format = decided.formats.layers.*products.format;
    const ProductFormat wanted = decided.formats.*products.kind;
    if (wanted == ProductFormat::kFp8 || wanted == ProductFormat::kBf16) continue;
    const bool is_open = format == LayerFormat::kAsKind;
    if (is_open) format = earlier ? format_of(*earlier, products) : LayerFormat::kFp8;
    if (config.precision.recipe != Recipe::kFp8Block || !is_measured(wanted, device)) continue;
    for (const TimedLayer& layer : layers) {
      if (layer.products.format != products.format) continue;
      const bool decides_format = is_open && !earlier;
      const bool decides_form = swiglu_form_is_open && has_swiglu_forms(layer) && format == LayerFormat::kFp8;
      if (!decides_format && !decides_form) continue;
      const LayerTimes& times = decided.times.emplace_back(times_of(layer));
      if (decides_format) format = times.faster();
      if (decides_form) {
        decided.swiglu_in_gemm.of(products) = format == LayerFormat::kFp8 && times.is_faster_in_gemm();
      }
    }
  }
  if (known) known->write();
  return decided;
}

std::string product_times_file() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  std::string directory = cache != nullptr && *cache == '/' ? cache : "";
  if (directory.empty() && home != nullptr && *home == '/') directory = join_path(home, ".cache");
  return directory.empty() ? "" : join_path(directory, "octet/products.json");
}

}  // namespace octet
