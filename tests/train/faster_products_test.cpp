#include "tools/train/faster_products.h"

#include <map>

#include "core/base/fault_file_system.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/small_run.h"
#include "tools/train/device.h"
#include "tools/train/yaml_reader.h"

namespace octet::test {
namespace {

constexpr const char* kFile = "cache/octet/products.json";

Config run_that_measures() {
  Config config = small_run();
  config.precision.recipe = Recipe::kFp8Block;
  config.precision.products = {
      .attention = ProductFormat::kFaster, .dense = ProductFormat::kFaster, .experts = ProductFormat::kFaster};
  return config;
}

// Made-up times, and what was asked for.
struct Clockwork {
  std::map<std::string, std::pair<double, double>> seconds;  // in FP8 and in bfloat16
  std::map<std::string, double> in_gemm;                     // in FP8 with SwiGLU in the product
  int asked = 0;

  TimeLayer time() {
    return [this](const TimedLayer& layer, TimedForm form) {
      ++asked;
      if (form == TimedForm::kFp8InGemm) return in_gemm.at(layer.products.name);
      const auto [fp8, bf16] = seconds.at(layer.products.name);
      return form == TimedForm::kFp8 ? fp8 : bf16;
    };
  }
};

DecidedProducts decide(const Config& config, FileSystem& files, Clockwork& clockwork,
                       const std::optional<ProductFormats>& earlier = {}, bool swiglu_form_is_open = false) {
  return decide_products(config, earlier, Device{}, swiglu_form_is_open, files, kFile, clockwork.time());
}

}  // namespace

TEST_CASE("the layers that are timed are those of the model, with a rank's rows", "[products]") {
  Config config = run_that_measures();
  config.model.layers = 3;
  config.model.dense_layers = 1;
  config.model.hidden = 64;
  config.model.heads = 2;
  config.model.kv_heads = 1;
  config.model.ffn_hidden = 96;
  config.model.moe = {.num_experts = 8, .top_k = 2, .shared_experts = 1, .expert_hidden = 32};
  config.data.seq_len = 16;
  config.train.batch_size = 8;
  config.train.micro_batch = 2;
  config.parallel.dp = 2;
  config.parallel.ep = 2;
  std::string text;
  for (const TimedLayer& layer : timed_layers(config)) {
    text += fmt::format("{} x {}: {}\n", layer.count, layer.products.name, layer.shape());
  }
  CHECK(text ==
        "3 x qkv_proj: 32 rows, 64 to 128\n"
        "3 x o_proj: 32 rows, 64 to 64\n"
        "1 x dense: 32 rows, 64 to 96 and back\n"
        "2 x shared_experts: 32 rows, 64 to 32 and back\n"
        "2 x experts: 4 groups, 64 rows, 64 to 32 and back\n");
  config.model.moe.num_experts = 0;
  CHECK(timed_layers(config).size() == 3);
}

TEST_CASE("each layer takes the format that is faster for it", "[products]") {
  Config config = run_that_measures();
  config.model.layers = 3;
  config.model.dense_layers = 1;
  config.model.moe.num_experts = 4;
  config.model.moe.shared_experts = 1;
  FaultFileSystem files;
  Clockwork clockwork;
  clockwork.seconds = {{"qkv_proj", {0.002, 0.003}},
                       {"o_proj", {0.002, 0.0015}},
                       {"dense", {0.001, 0.002}},
                       {"shared_experts", {0.002, 0.00125}},
                       {"experts", {0.001, 0.001}}};  // as fast: FP8 takes less memory
  const DecidedProducts decided = decide(config, files, clockwork);
  CHECK(decided.formats.layers == LayerFormats{.qkv_proj = LayerFormat::kFp8,
                                               .o_proj = LayerFormat::kBf16,
                                               .dense = LayerFormat::kFp8,
                                               .shared_experts = LayerFormat::kBf16,
                                               .experts = LayerFormat::kFp8});
  CHECK(decided.formats.attention == ProductFormat::kFaster);
  CHECK(clockwork.asked == 10);
  // No layer is used in the format that takes longer, and the sums count each as often as the model has it.
  const std::vector<std::string> table = table_of(decided.times, decided.formats);
  const auto columns = [&table](size_t row) {
    const std::string& line = table.at(row);
    std::string text = line.substr(0, line.find(' '));
    for (size_t at = 61; at != std::string::npos && at < line.size();) {
      const size_t begin = line.find_first_not_of(' ', at), end = line.find(' ', begin);
      text += " " + line.substr(begin, end - begin);
      at = end;
    }
    return text;
  };
  REQUIRE(table.size() == 7);
  CHECK(columns(0) == "layer fp8 ms bf16 ms bf16/fp8 used");
  CHECK(columns(1) == "qkv_proj 2.000 3.000 1.50 fp8");
  CHECK(columns(2) == "o_proj 2.000 1.500 0.75 bf16");
  CHECK(columns(3) == "dense 1.000 2.000 2.00 fp8");
  CHECK(columns(4) == "shared_experts 2.000 1.250 0.62 bf16");
  CHECK(columns(5) == "experts 1.000 1.000 1.00 fp8");
  // 3 (2 + 2) + 1 + 2 (2 + 1);  3 (3 + 1.5) + 2 + 2 (1.25 + 1);  3 (2 + 1.5) + 1 + 2 (1.25 + 1)
  CHECK(columns(6) == "all 19.000 20.000 1.05 16.000 ms as they are used");
  CHECK_THAT(table_of(decide(config, files, clockwork).times, decided.formats).at(2),
             Catch::EndsWith("bf16, measured before"));
  CHECK(table_of({}, {}).size() == 1);
}

TEST_CASE("what was measured is remembered by size, and not measured again", "[products]") {
  Config config = run_that_measures();
  FaultFileSystem files;
  Clockwork clockwork;
  for (const TimedLayer& layer : timed_layers(config)) clockwork.seconds[layer.products.name] = {1.5, 1.25};
  const DecidedProducts first = decide(config, files, clockwork);
  const int asked = clockwork.asked;
  CHECK(asked == 2 * int(timed_layers(config).size()));
  const DecidedProducts again = decide(config, files, clockwork);
  CHECK(clockwork.asked == asked);
  CHECK(again.formats == first.formats);
  for (const LayerTimes& times : again.times) CHECK((times.is_remembered && times.fp8_s == 1.5));
  config.data.seq_len *= 2;
  decide(config, files, clockwork);
  CHECK(clockwork.asked == 2 * asked);
  config.precision.emulation = Fp8Arithmetic::kFp64;  // other kernels
  decide(config, files, clockwork);
  CHECK(clockwork.asked == 3 * asked);
  config.precision.wgrad = WgradOperands::kTiles;  // and other operands
  decide(config, files, clockwork);
  CHECK(clockwork.asked == 4 * asked);
}

TEST_CASE("a file of times that cannot be used is measured anew, and replaced where it can be", "[products]") {
  const Config config = run_that_measures();
  const std::string text = GENERATE("", "{", "[]", R"({"version": 2, "seconds": {}})", R"({"version": 1})",
                                    R"({"version": 1, "seconds": []})", R"({"version": 1, "seconds": {"a": 1}})",
                                    R"({"version": 1, "seconds": {"a": {"fp8": 0.5, "bf16": -1.0}}})",
                                    R"({"version": 1, "seconds": {"a": {"fp8": 0.5}}})",
                                    R"({"version": 1, "seconds": {"a": {"fp8": 1, "bf16": 1, "fp8_in_gemm": 0}}})");
  FaultFileSystem files;
  files.make_directories(directory_of(kFile));
  files.write_atomically(kFile, text);
  Clockwork clockwork;
  for (const TimedLayer& layer : timed_layers(config)) clockwork.seconds[layer.products.name] = {1, 2};
  CHECK(decide(config, files, clockwork).formats.layers.experts == LayerFormat::kFp8);
  const int asked = clockwork.asked;
  CHECK(asked > 0);
  decide(config, files, clockwork);
  CHECK(clockwork.asked == asked);
}

TEST_CASE("only what is left open is measured", "[products]") {
  constexpr auto kFp8 = LayerFormat::kFp8, kBf16 = LayerFormat::kBf16;
  Config config = run_that_measures();
  FaultFileSystem files;
  Clockwork clockwork;  // knows no layer, and would throw
  const ProductFormats by_kind = {
      .attention = ProductFormat::kBf16, .dense = ProductFormat::kFp8, .experts = ProductFormat::kBf16};
  SECTION("what is said of kinds") {
    config.precision.products = by_kind;
    CHECK(decide(config, files, clockwork).formats == by_kind);
  }
  SECTION("what is said of layers") {
    const LayerFormats said = {
        .qkv_proj = kFp8, .o_proj = kBf16, .dense = kBf16, .shared_experts = kFp8, .experts = kBf16};
    config.precision.products.layers = said;
    CHECK(decide(config, files, clockwork).formats == config.precision.products);
  }
  SECTION("one layer of a kind") {
    config.precision.products = by_kind;
    config.precision.products.attention = ProductFormat::kFaster;
    config.precision.products.layers.o_proj = kBf16;
    clockwork.seconds = {{"qkv_proj", {1, 2}}};
    CHECK(decide(config, files, clockwork).formats.layers == LayerFormats{.qkv_proj = kFp8, .o_proj = kBf16});
    CHECK(clockwork.asked == 2);
    files.remove_file(kFile);
  }
  SECTION("what a run that goes on has decided, by layers or all of a kind") {
    ProductFormats earlier = by_kind;
    LayerFormats of_earlier = {
        .qkv_proj = kBf16, .o_proj = kBf16, .dense = kFp8, .shared_experts = kFp8, .experts = kBf16};
    if (GENERATE(false, true)) {
      earlier = {};
      earlier.layers =
          of_earlier = {.qkv_proj = kBf16, .o_proj = kFp8, .dense = kFp8, .shared_experts = kBf16, .experts = kFp8};
    }
    CHECK(decide(config, files, clockwork, earlier).formats.layers == of_earlier);
    config.precision.products = {};  // on a CPU too, where nothing is measured by itself
    CHECK(decide(config, files, clockwork, earlier).formats.layers == of_earlier);
    config.precision.products.experts = ProductFormat::kFp8;  // and what is said comes first
    config.precision.products.layers.o_proj = kFp8;
    const ProductFormats formats = decide(config, files, clockwork, earlier).formats;
    CHECK(format_of(formats, kExperts) == kFp8);
    CHECK(format_of(formats, kOProj) == kFp8);
    CHECK(format_of(formats, kQkvProj) == kBf16);
  }
  SECTION("auto on a CPU, and other recipes") {
    config.precision.products = {};
    CHECK(decide(config, files, clockwork).formats.layers ==
          LayerFormats{.qkv_proj = kFp8, .o_proj = kFp8, .dense = kFp8, .shared_experts = kFp8, .experts = kFp8});
    config = run_that_measures();
    config.precision.recipe = Recipe::kBf16;
    CHECK(decide(config, files, clockwork).times.empty());
  }
  CHECK(!files.exists(kFile));
}

TEST_CASE("formats by kind alone, as checkpoints without layers have them, are those of each layer", "[products]") {
  constexpr auto kFp8 = LayerFormat::kFp8, kBf16 = LayerFormat::kBf16;
  const std::string yaml = R"(
precision:
  recipe: fp8_block
  products: {attention: bf16, dense: fp8, experts: bf16}
data: {path: data}
)";
  const ProductFormats earlier = read_config(yaml, "config.yaml").precision.products;
  const LayerFormat want[] = {kBf16, kBf16, kFp8, kFp8, kBf16};
  for (size_t i = 0; i < std::size(kProductLayers); ++i) CHECK(format_of(earlier, kProductLayers[i]) == want[i]);
  FaultFileSystem files;
  Clockwork clockwork;  // knows no layer, and would throw
  const LayerFormats formats = decide(run_that_measures(), files, clockwork, earlier).formats.layers;
  for (size_t i = 0; i < std::size(kProductLayers); ++i) CHECK(formats.*kProductLayers[i].format == want[i]);
}

TEST_CASE("a feed-forward layer in FP8 takes the faster of its two forms", "[products]") {
  Config config = run_that_measures();
  config.model.layers = 3;
  config.model.dense_layers = 1;
  config.model.ffn_hidden = 256;
  config.model.moe.num_experts = 4;
  config.model.moe.shared_experts = 1;
  config.model.moe.expert_hidden = 128;
  FaultFileSystem files;
  Clockwork clockwork;
  clockwork.seconds = {{"qkv_proj", {0.002, 0.003}},
                       {"o_proj", {0.002, 0.003}},
                       {"dense", {0.002, 0.003}},
                       {"shared_experts", {0.002, 0.00125}},
                       {"experts", {0.004, 0.003}}};
  clockwork.in_gemm = {{"dense", 0.0025}, {"shared_experts", 0.0015}, {"experts", 0.0025}};
  const auto decide_open = [&](const std::optional<ProductFormats>& earlier = {}) {
    return decide(config, files, clockwork, earlier, /*swiglu_form_is_open=*/true);
  };
  const auto forms = [](const DecidedProducts& decided) {
    const SwigluInGemm& in_gemm = decided.swiglu_in_gemm;
    return std::vector<bool>{in_gemm.dense, in_gemm.shared_experts, in_gemm.experts};
  };
  // Not in the product where that is slower, nor where bfloat16 is faster; and it may make FP8 the faster format.
  const DecidedProducts decided = decide_open();
  CHECK(forms(decided) == std::vector<bool>{false, false, true});
  CHECK(decided.formats.layers.shared_experts == LayerFormat::kBf16);
  CHECK(decided.formats.layers.experts == LayerFormat::kFp8);
  CHECK(clockwork.asked == 13);
  const std::vector<std::string> table = table_of(decided.times, decided.formats);
  CHECK_THAT(table.at(1), Catch::EndsWith("1.50  fp8"));
  CHECK_THAT(table.at(3), Catch::EndsWith("2.000     3.000      1.50  fp8, swiglu apart (2.500 in the product)"));
  CHECK_THAT(table.at(4), Catch::EndsWith("1.500     1.250      0.83  bf16"));
  CHECK_THAT(table.at(5), Catch::EndsWith("2.500     3.000      1.20  fp8, swiglu in the product (4.000 apart)"));
  // 3 (2 + 2) + 2 + 2 (1.25 + 2.5)
  CHECK_THAT(table.at(6), Catch::EndsWith("21.500 ms as they are used"));

  SECTION("remembered") {
    CHECK(forms(decide_open()) == forms(decided));
    CHECK(clockwork.asked == 13);
  }
  SECTION("where it is not open, it is not used") {
    const DecidedProducts closed = decide(config, files, clockwork);
    CHECK(forms(closed) == std::vector<bool>{false, false, false});
    CHECK(closed.formats.layers.experts == LayerFormat::kBf16);
    CHECK(clockwork.asked == 13);
  }
  SECTION("what was remembered before it was open is measured, and nothing else") {
    files.remove_file(kFile);
    decide(config, files, clockwork);
    CHECK(clockwork.asked == 23);
    CHECK(forms(decide_open()) == forms(decided));
    CHECK(clockwork.asked == 26);
  }
  SECTION("a run that goes on keeps its formats and decides the forms of those in FP8 anew") {
    ProductFormats earlier = decided.formats;
    earlier.layers.dense = LayerFormat::kBf16;
    earlier.layers.shared_experts = LayerFormat::kFp8;
    const DecidedProducts again = decide_open(earlier);
    CHECK(again.formats.layers == earlier.layers);
    CHECK(forms(again) == std::vector<bool>{false, true, true});
    CHECK(clockwork.asked == 13);
  }
  SECTION("a format that you give leaves the form open, a kind of layers that you give does not") {
    config.precision.products.layers.shared_experts = LayerFormat::kFp8;
    config.precision.products.experts = ProductFormat::kFp8;
    CHECK(forms(decide_open()) == std::vector<bool>{false, true, false});
  }
  SECTION("a width that no kernel makes codes of in its product") {
    config.model.moe.expert_hidden = 64;
    CHECK(forms(decide_open()) == std::vector<bool>{false, false, false});
    CHECK(clockwork.asked == 17);
  }
}

TEST_CASE("layers are timed in both formats", "[products]") {
  Config config = run_that_measures();
  config.model.moe.num_experts = 4;
  for (TimedLayer layer : timed_layers(config)) {
    for (const auto& [form, wgrad] :
         {std::pair(TimedForm::kFp8, WgradOperands::kColumns), std::pair(TimedForm::kFp8, WgradOperands::kTiles),
          std::pair(TimedForm::kFp8InGemm, WgradOperands::kColumns),
          std::pair(TimedForm::kBf16, WgradOperands::kTiles)}) {
      PrecisionConfig precision;
      precision.wgrad = wgrad;
      int progress = 0;
      CHECK(time_layer(layer, form, precision, Device{}, [&] { ++progress; }) > 0);
      CHECK(progress > 1);
    }
  }
}

}  // namespace octet::test
