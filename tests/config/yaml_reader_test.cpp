#include "tools/train/yaml_reader.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>

#include "core/base/error.h"
#include "core/base/random.h"
#include "tests/support/temporary_directory.h"
#include "tools/train/config_keys.h"

namespace octet::test {
namespace {

// Values a configuration may have, for the round trip: valid or not is another matter.
std::string random_value(const ConfigKey& key, const RandomStream& random, uint64_t n) {
  if (key.type == "an integer") return fmt::format("{}", int64_t(random.bits(n)));
  if (key.type == "a number") return fmt::format("{}", random.normal(n) * std::pow(10.0f, random.normal(n, 1)));
  if (key.type == "true or false") return random.bits(n) % 2 == 0 ? "true" : "false";
  if (key.type.starts_with("one of ")) {
    const std::string names = key.type.substr(7) + ", ";
    const auto count = uint64_t(std::count(names.begin(), names.end(), ','));
    size_t at = 0;
    for (uint64_t skip = random.below(count, n); skip > 0; --skip) at = names.find(", ", at) + 2;
    return names.substr(at, names.find(',', at) - at);
  }
  if (key.path == "optim.milestones") return n % 2 == 0 ? "[]" : "[1, 20, 300]";
  if (key.path == "train.recompute") return n % 2 == 0 ? "[block]" : "[swiglu, norm]";
  const char* texts[] = {"",           "a b",         "null",       "~",     "yes",
                         "12",         "it's",        "\"quoted\"", "- x",   "a: b # c",
                         "#",          "&a",          "*a",         "!t",    "{}",
                         "[1]",        "ends ",       " begins",    "é ü",   "\xf0\x9f\x99\x82",
                         "line\nline", "back\\slash", "\x7f\x01",   "../up", "..",
                         "...",        "---",         "|",          ">",     "%x",
                         "@x",         "`x`",         "a,b",        "true",  "1e5",
                         "\xc2\x85",   "\xe2\x80\xa8"};
  return texts[n % std::size(texts)];
}

}  // namespace

TEST_CASE("a configuration is read in block and flow style, with comments", "[config][yaml]") {
  Origins origins;
  const Config config = read_config(
      "# A run.\r\n"
      "---\n"
      "model: {layers: 3, moe: {num_experts: 8, top_k: 3}}  # short\n"
      "data:\n"
      "  path: 'runs/it''s/data'\n"
      "optim:\n"
      "  lr: 2e-5\n"
      "  milestones:\n"
      "    - 10\n"
      "    - 1e2\n"
      "train:\n"
      "  recompute: [norm,\n"
      "    block]\n"
      "  sample_prompt: \"Once \\\"upon\\\"\\n\"\n"
      "precision: {recipe: bf16}\n",
      "r.yaml", {"train.steps=7", "data.seq_len=64"}, &origins);
  CHECK(config.model.layers == 3);
  CHECK(config.model.moe.top_k == 3);
  CHECK(config.data.path == "runs/it's/data");
  CHECK(config.optim.lr == 2e-5);
  CHECK(config.optim.milestones == std::vector<int64_t>{10, 100});
  CHECK(config.train.recompute == std::vector<Recompute>{Recompute::kNorm, Recompute::kBlock});
  CHECK(config.train.sample_prompt == "Once \"upon\"\n");
  CHECK(config.precision.recipe == Recipe::kBf16);
  CHECK(config.train.steps == 7);
  CHECK(origins["model.layers"] == "r.yaml:3");
  CHECK(origins["model.moe.top_k"] == "r.yaml:3");
  CHECK(origins["optim.milestones"] == "r.yaml:9");
  CHECK(origins["train.steps"] == "--set");
  CHECK(origins["optim.beta1"] == "default");
}

TEST_CASE("all mistakes of a file are in one report, each with its place", "[config][yaml]") {
  const std::string block = error_of([] {
                              read_config(
                                  "model: {layrs: 4, hidden: 010, heads: 3, moe: {num_experts: 8, top_k: 9}}\n"
                                  "precison: {recipe: fp8}\n"
                                  "data: {path: d, seq_len: \"128\"}\n"
                                  "optim:\n"
                                  "  lr: fast\n"
                                  "  lr: 2e-5\n"
                                  "  beta1: .nan\n"
                                  "train: {batch_size: 8, micro_batch: 3, recompute: [norm, swigl]}\n",
                                  "r.yaml", {"trian.steps=3", "parallel.ep=2"});
                            }).block();
  CAPTURE(block);
  CHECK(block.find("13 problems") != std::string::npos);
  for (const char* part :
       {"model.layrs is no key\n     where: r.yaml:1:9\n", "did you mean layers? write `layers: 4`",
        "model.hidden is 010, with a leading zero", "write `hidden: 10`",
        "precison is no key\n     where: r.yaml:2:1\n",
        "precision.recipe is fp8; wanted one of fp32, bf16, fp8_block\n     where: r.yaml:2:20\n",
        "data.seq_len is \"128\", a text in quotes; wanted an integer\n     where: r.yaml:3:26\n",
        "optim.lr is fast; wanted a number\n     where: r.yaml:5:7\n",
        "optim.lr is given twice, first on line 5\n     where: r.yaml:6:3\n", "optim.beta1 is .nan",
        "train.recompute is swigl", "write `recompute: [norm, swiglu]`", "trian.steps is no key",
        "did you mean --set train.steps=3?", "model.moe.top_k is 9; wanted 1 to model.moe.num_experts, 8\n",
        "train.micro_batch is 3; wanted a divisor of train.batch_size / parallel.dp, 8: 1, 2, 4 or 8\n     where: "
        "r.yaml:8:37\n",
        "parallel.ep is 2; wanted a divisor of parallel.dp, 1: 1\n     where: --set parallel.ep=2\n", "code:  2"}) {
    CAPTURE(part);
    CHECK(block.find(part) != std::string::npos);
  }
  // hidden could not be read, so nothing is said about heads, which depends on it.
  CHECK(block.find("model.heads") == std::string::npos);
}

TEST_CASE("what is printed reads back to the same configuration", "[config][yaml]") {
  const auto read_unchecked = [](const std::string& text) {
    // Random values do not pass validation; the reader has assigned them by then.
    Config read;
    try {
      read_config(text, "p.yaml", {}, nullptr, [&read](const Config& config, Problems&) { read = config; });
    } catch (const Error& error) {
      const std::vector<Report> reports = error.parts().empty() ? std::vector{error.report()} : error.parts();
      for (const Report& report : reports) {
        CAPTURE(report.what);
        CHECK(report.what.find("wanted a") != 0);
        CHECK(report.what.find("breaks off") == std::string::npos);
      }
    }
    return read;
  };
  const RandomStream random(1, "round trip");
  uint64_t n = 0;
  for (int round = 0; round < 200; ++round) {
    Config config;
    for (const ConfigKey& key : config_keys(config)) {
      if (key.is_section || random.bits(++n) % 3 == 0) continue;
      std::string value = random_value(key, random, n);
      std::vector<ScalarText> scalars = {{value}};
      if (key.is_list) {
        scalars.clear();
        for (size_t at = 1; at + 1 < value.size();) {
          const size_t end = std::min(value.find(", ", at), value.size() - 1);
          scalars.push_back({value.substr(at, end - at)});
          at = end + 2;
        }
      }
      REQUIRE_FALSE(key.assign(scalars));
    }
    const std::string text = print_config(config);
    CAPTURE(text);
    REQUIRE(print_config(read_unchecked(text)) == text);
    const Origins origins = {{"train.steps", "odd\nname\x01.yaml:3"}, {"optim.lr", "--set"}};
    REQUIRE(print_config(read_unchecked(print_config(config, &origins))) == text);
  }
}

TEST_CASE("the printed configuration says where each value comes from", "[config][yaml]") {
  Origins origins;
  const Config config = read_config("data: {path: d}\ntrain:\n  steps: 12\n", "r.yaml", {"optim.lr=1e-2"}, &origins);
  const std::string text = print_config(config, &origins);
  const auto has_line = [&text](const std::string& key, const std::string& comment) {
    const size_t at = text.find(key);
    return at != std::string::npos && text.substr(at, text.find('\n', at) - at).ends_with("# " + comment);
  };
  CHECK(has_line("  path: d", "r.yaml:1"));
  CHECK(has_line("  steps: 12", "r.yaml:3"));
  CHECK(has_line("  lr: 0.01", "--set"));
  CHECK(has_line("  beta1: 0.9", "default"));
}

TEST_CASE("--set goes through the conversions of the file", "[config][yaml]") {
  const std::string yaml = "data: {path: d}\ntrain: {recompute: [norm]}\n";
  const auto with = [&yaml](const std::vector<std::string>& overrides) {
    return read_config(yaml, "r.yaml", overrides);
  };
  CHECK(with({"train.steps=1e3"}).train.steps == 1000);
  CHECK(with({"train.steps=5", "train.steps=6"}).train.steps == 6);  // the last one counts
  CHECK(with({"data.path=a=b c#d: e"}).data.path == "a=b c#d: e");   // a text as it stands
  CHECK(with({"train.recompute=[block]"}).train.recompute == std::vector{Recompute::kBlock});
  CHECK(with({"train.recompute=block, norm"}).train.recompute == std::vector{Recompute::kBlock, Recompute::kNorm});
  CHECK(with({"train.recompute=[]"}).train.recompute.empty());
  CHECK(with({"model.tied_head=true"}).model.tied_head);
  CHECK(with({"precision.recipe=bf16"}).precision.recipe == Recipe::kBf16);

  const std::pair<const char*, const char*> bad[] = {
      {"train.steps", "an override has no value"},
      {"train.steps=", "train.steps is ; wanted an integer"},
      {"train.steps=010", "write --set train.steps=10"},
      {"train.steps=-1", "train.steps is -1; wanted 1 to"},
      {"model.tied_head=yes", "write --set model.tied_head=true"},
      {"train={steps: 3}", "train is a section"},
      {"train.recompute=[norm, x]", "train.recompute is x; wanted one of"},
      {"steps=3", "did you mean --set train.steps=3?"},
      {"tran.steps=3", "did you mean --set train.steps=3?"},
      {"model.moe.topk=3", "did you mean --set model.moe.top_k=3?"},
      {"=3", "is no key"},
      {"data.path=\xff", "is not UTF-8"},
  };
  for (const auto& [text, message] : bad) {
    CAPTURE(text);
    const Error error = error_of([&, &override_text = text] { with({override_text}); });
    CHECK(error.code() == 2);
    CAPTURE(error.block());
    CHECK(error.block().find(message) != std::string::npos);
  }
  // A megabyte on the command line.
  const std::string large(1 << 20, 'x');
  CHECK(error_of([&] { with({"data.path=" + large}); }).block().size() < 1000);
  CHECK(error_of([&] { with({large + "=1"}); }).block().size() < 1000);
}

TEST_CASE("every run in configs/ is sound", "[config][yaml]") {
  const std::string directory = std::string(OCTET_SOURCE_DIR) + "/configs";
  int count = 0;
  for (const std::string& name : real_file_system().list(directory)) {
    CAPTURE(name);
    CHECK_NOTHROW(load_config(real_file_system(), join_path(directory, name)));
    ++count;
  }
  CHECK(count >= 4);
}

}  // namespace octet::test
