#include "tools/train/faster_products.h"

#include <map>

#include "core/base/fault_file_system.h"
#include "tests/support/temporary_directory.h"
#include "tests/train/small_run.h"
#include "tools/train/device.h"

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
  int asked = 0;

  TimeLayer time() {
    return [this](const TimedLayer& layer, Recipe recipe) {
      ++asked;
      const auto [fp8, bf16] = seconds.at(layer.name);
      return recipe == Recipe::kFp8Block ? fp8 : bf16;
    };
  }
};

DecidedProducts decide(const Config& config, FileSystem& files, Clockwork& clockwork,
                       const std::optional<ProductFormats>& earlier = {}) {
  return decide_products(config, earlier, Device{}, files, kFile, clockwork.time());
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
    text += fmt::format("{} x {}: {}\n", layer.count, layer.name, layer.shape());
  }
  CHECK(text ==
        "3 x qkv_proj: 32 rows, 64 to 128\n"
        "3 x o_proj: 32 rows, 64 to 64\n"
        "1 x dense feed-forward: 32 rows, 64 to 96 and back\n"
        "2 x shared experts: 32 rows, 64 to 32 and back\n"
        "2 x experts: 4 groups, 64 rows, 64 to 32 and back\n");
  config.model.moe.num_experts = 0;
  CHECK(timed_layers(config).size() == 3);
}

TEST_CASE("the faster format is taken, by kind of layer and its number of layers", "[products]") {
  Config config = run_that_measures();
  config.model.layers = 3;
  config.model.dense_layers = 1;
  config.model.moe.num_experts = 4;
  config.model.moe.shared_experts = 1;
  FaultFileSystem files;
  Clockwork clockwork;
  clockwork.seconds = {{"qkv_proj", {2, 3}},
                       {"o_proj", {2, 1.5}},            // 4 against 4.5
                       {"dense feed-forward", {1, 2}},  // once
                       {"shared experts", {2, 1.25}},   // twice: 5 against 4.5
                       {"experts", {1, 1}}};            // as fast: FP8 takes less memory
  const DecidedProducts decided = decide(config, files, clockwork);
  CHECK(decided.formats.attention == ProductFormat::kFp8);
  CHECK(decided.formats.dense == ProductFormat::kBf16);
  CHECK(decided.formats.experts == ProductFormat::kFp8);
  CHECK(decided.times.size() == 5);
  CHECK(clockwork.asked == 10);
}

TEST_CASE("what was measured is remembered by size, and not measured again", "[products]") {
  Config config = run_that_measures();
  FaultFileSystem files;
  Clockwork clockwork;
  for (const TimedLayer& layer : timed_layers(config)) clockwork.seconds[layer.name] = {1.5, 1.25};
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
                                    R"({"version": 1, "seconds": {"a": {"fp8": 0.5}}})");
  FaultFileSystem files;
  files.make_directories(directory_of(kFile));
  files.write_atomically(kFile, text);
  Clockwork clockwork;
  for (const TimedLayer& layer : timed_layers(config)) clockwork.seconds[layer.name] = {1, 2};
  CHECK(decide(config, files, clockwork).formats.experts == ProductFormat::kFp8);
  const int asked = clockwork.asked;
  CHECK(asked > 0);
  decide(config, files, clockwork);
  CHECK(clockwork.asked == asked);
}

TEST_CASE("only what is left open is measured", "[products]") {
  Config config = run_that_measures();
  FaultFileSystem files;
  Clockwork clockwork;  // knows no layer, and would throw
  SECTION("what is said") {
    config.precision.products = {
        .attention = ProductFormat::kFp8, .dense = ProductFormat::kBf16, .experts = ProductFormat::kFp8};
    CHECK(decide(config, files, clockwork).formats == config.precision.products);
  }
  SECTION("what a run that goes on has decided") {
    const ProductFormats earlier = {
        .attention = ProductFormat::kBf16, .dense = ProductFormat::kFp8, .experts = ProductFormat::kBf16};
    CHECK(decide(config, files, clockwork, earlier).formats == earlier);
    config.precision.products = {};  // on a CPU too, where nothing is measured by itself
    CHECK(decide(config, files, clockwork, earlier).formats == earlier);
    config.precision.products.experts = ProductFormat::kFp8;  // and what is said comes first
    CHECK(decide(config, files, clockwork, earlier).formats.experts == ProductFormat::kFp8);
  }
  SECTION("auto on a CPU, and other recipes") {
    config.precision.products = {};
    const ProductFormats all_fp8 = {
        .attention = ProductFormat::kFp8, .dense = ProductFormat::kFp8, .experts = ProductFormat::kFp8};
    CHECK(decide(config, files, clockwork).formats == all_fp8);
    config = run_that_measures();
    config.precision.recipe = Recipe::kBf16;
    CHECK(decide(config, files, clockwork).times.empty());
  }
  CHECK(!files.exists(kFile));
}

TEST_CASE("layers are timed in both formats", "[products]") {
  Config config = run_that_measures();
  config.model.moe.num_experts = 4;
  for (TimedLayer layer : timed_layers(config)) {
    for (const auto& [recipe, wgrad] :
         {std::pair(Recipe::kFp8Block, WgradOperands::kColumns), std::pair(Recipe::kFp8Block, WgradOperands::kTiles),
          std::pair(Recipe::kBf16, WgradOperands::kTiles)}) {
      PrecisionConfig precision;
      precision.wgrad = wgrad;
      int progress = 0;
      CHECK(time_layer(layer, recipe, precision, Device{}, [&] { ++progress; }) > 0);
      CHECK(progress > 1);
    }
  }
}

}  // namespace octet::test
