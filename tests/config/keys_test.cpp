#include "tools/train/config_keys.h"

#include <catch2/catch.hpp>
#include <clocale>
#include <cmath>
#include <limits>
#include <locale>
#include <set>

#include "core/base/error.h"
#include "tests/support/temporary_directory.h"
#include "tools/train/config_reference.h"
#include "tools/train/yaml_reader.h"

namespace octet::test {
namespace {

// A decimal comma and points between thousands, as in de_DE, whatever locales this machine has installed.
class CommaNumbers : public std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};
class GermanLocale {
 public:
  GermanLocale() : before_(std::locale::global(std::locale(std::locale::classic(), new CommaNumbers))) {
    c_before_ = std::setlocale(LC_ALL, nullptr);
    std::setlocale(LC_ALL, "de_DE.UTF-8");  // where it is installed, printf and strtod change as well
  }
  ~GermanLocale() {
    std::setlocale(LC_ALL, c_before_.c_str());
    std::locale::global(before_);
  }
  GermanLocale(const GermanLocale&) = delete;
  GermanLocale& operator=(const GermanLocale&) = delete;

 private:
  std::locale before_;
  std::string c_before_;
};

// YAML that puts `name: value` into the section `parent` of an otherwise good configuration.
std::string with_key(const std::string& parent, const std::string& name, const std::string& value) {
  std::string text;
  int depth = 0;
  for (size_t at = 0; at < parent.size(); ++depth) {
    const size_t dot = std::min(parent.find('.', at), parent.size());
    text += std::string(size_t(2 * depth), ' ') + parent.substr(at, dot - at) + ":\n";
    at = dot + 1;
  }
  text += std::string(size_t(2 * depth), ' ') + name + ": " + value + "\n";
  return text;
}

std::set<std::string> one_edit_typos(const std::string& name) {
  std::set<std::string> typos;
  const std::string letters = "aex_s";
  for (size_t i = 0; i <= name.size(); ++i) {
    for (const char c : letters) typos.insert(name.substr(0, i) + c + name.substr(i));
    if (i == name.size()) break;
    typos.insert(name.substr(0, i) + name.substr(i + 1));
    for (const char c : letters) typos.insert(name.substr(0, i) + c + name.substr(i + 1));
    if (i + 1 < name.size()) {
      std::string exchanged = name;
      std::swap(exchanged[i], exchanged[i + 1]);
      typos.insert(exchanged);
    }
  }
  typos.erase(name);
  typos.erase("");
  return typos;
}

}  // namespace

TEST_CASE("integers are taken only in a plain or exact spelling", "[config][keys]") {
  const std::pair<const char*, int64_t> good[] = {{"0", 0},
                                                  {"7", 7},
                                                  {"-7", -7},
                                                  {"1e3", 1000},
                                                  {"1E3", 1000},
                                                  {"2.5e3", 2500},
                                                  {"2.50e1", 25},
                                                  {"1200e-2", 12},
                                                  {"3.0", 3},
                                                  {"0e5", 0},
                                                  {"0.000e-9", 0},
                                                  {"9223372036854775807", std::numeric_limits<int64_t>::max()},
                                                  {"-9223372036854775808", std::numeric_limits<int64_t>::min()},
                                                  {"9007199254740993", 9007199254740993}};  // no double holds it
  for (const auto& [text, want] : good) {
    CAPTURE(text);
    int64_t value = -1;
    CHECK_FALSE(parse_integer({text}, value));
    CHECK(value == want);
  }
  // With the correction where one is plainly meant.
  const std::pair<const char*, const char*> bad[] = {{"010", "10"},
                                                     {"-010", "-10"},
                                                     {"1_000", "1000"},
                                                     {"1,000", "1000"},
                                                     {"+5", "5"},
                                                     {"0x10", "16"},
                                                     {"0o10", ""},
                                                     {"1.5", ""},
                                                     {"15e-1", ""},
                                                     {"9223372036854775808", ""},
                                                     {"1e19", ""},
                                                     {"1e99999999999999999999", ""},
                                                     {"1e-99999999999999999999", ""},
                                                     {"", ""},
                                                     {"-", ""},
                                                     {".", ""},
                                                     {"e3", ""},
                                                     {"1e", ""},
                                                     {"1e+", ""},
                                                     {"5 ", ""},
                                                     {" 5", ""},
                                                     {"5min", ""},
                                                     {"four", ""},
                                                     {"true", ""},
                                                     {"nan", ""}};
  for (const auto& [text, corrected] : bad) {
    CAPTURE(text);
    int64_t value = -1;
    const auto mistake = parse_integer({text}, value);
    REQUIRE(mistake);
    CHECK(mistake->corrected == corrected);
    CHECK(value == -1);
  }
  int64_t value = -1;
  const auto quoted = parse_integer({"5", /*is_quoted=*/true}, value);
  REQUIRE(quoted);
  CHECK(quoted->corrected == "5");
}

TEST_CASE("numbers are decimal, finite and in range", "[config][keys]") {
  const std::pair<const char*, double> good[] = {{"0", 0.0},   {"2e-5", 2e-5},    {"1e+3", 1e3}, {".5", 0.5},
                                                 {"5.", 5.0},  {"-0.25", -0.25},  {"3", 3.0},    {"1e308", 1e308},
                                                 {"0.1", 0.1}, {"5e-324", 5e-324}};
  for (const auto& [text, want] : good) {
    CAPTURE(text);
    double value = -1;
    CHECK_FALSE(parse_number({text}, value));
    CHECK(value == want);
  }
  for (const char* text : {".nan", "nan", "NaN", ".inf", "-.inf", "inf", "infinity", "1e309", "1e-400", "00.5", "1_0.5",
                           "0.1f", "1e5x", "", "fast", "1,5", "0x1p3", "1:30"}) {
    CAPTURE(text);
    double value = -1;
    CHECK(parse_number({text}, value));
    CHECK(value == -1);
  }
  float single = -1;
  CHECK(parse_number({"1e39"}, single));
  CHECK(parse_number({"1e-50"}, single));
  CHECK(single == -1);
  CHECK_FALSE(parse_number({"0.1"}, single));
  CHECK(single == 0.1f);
}

TEST_CASE("booleans are true and false alone", "[config][keys]") {
  bool value = false;
  CHECK_FALSE(parse_boolean({"true"}, value));
  CHECK(value);
  for (const char* text : {"yes", "no", "on", "off", "True", "FALSE", "y", "n", "1", "0", "", "truee"}) {
    CAPTURE(text);
    CHECK(parse_boolean({text}, value));
  }
  CHECK(parse_boolean({"true", /*is_quoted=*/true}, value)->corrected == "true");
  CHECK(parse_boolean({"Off"}, value)->corrected == "false");
}

TEST_CASE("a German locale changes neither how numbers are read nor how they are written", "[config][keys]") {
  const std::string yaml =
      "data: {path: d}\ntrain: {steps: 12345}\noptim: {lr: 0.00125, weight_decay: 0.5}\nmodel: {init_std: 0.0125}\n";
  const std::string want = print_config(read_config(yaml, "t.yaml"));
  const GermanLocale german;
  const Config config = read_config(yaml, "t.yaml");
  CHECK(config.train.steps == 12345);
  CHECK(config.optim.lr == 0.00125);
  CHECK(config.model.init_std == 0.0125f);
  CHECK(print_config(config) == want);
  CHECK(read_config(yaml, "t.yaml", {"optim.lr=0.5"}).optim.lr == 0.5);
  CHECK_THROWS_AS(read_config(yaml, "t.yaml", {"optim.lr=0,5"}), Error);
}

TEST_CASE("every misspelling of every key is refused, and the key is the first suggestion", "[config][keys]") {
  Config config;
  const std::vector<ConfigKey> keys = config_keys(config);
  int64_t typos = 0, right = 0;
  for (const ConfigKey& key : keys) {
    for (const std::string& typo : one_edit_typos(key.name)) {
      // Some typo of a short name is another name.
      if (find_key(keys, key.parent.empty() ? typo : key.parent + "." + typo) != nullptr) continue;
      ++typos;
      const ConfigKey* nearest = nearest_key(keys, key.parent, typo);
      if (nearest != nullptr && nearest->path == key.path) ++right;
    }
  }
  CAPTURE(typos, right);
  CHECK(typos > 5000);
  CHECK(double(right) >= 0.95 * double(typos));
}

TEST_CASE("a misspelt key in a file or in --set gives the key in the message", "[config][keys]") {
  Config config;
  for (const ConfigKey& key : config_keys(config)) {
    if (key.is_section || key.name.size() < 4) continue;
    const std::string typo = key.name.substr(0, 2) + key.name.substr(3);
    CAPTURE(key.path, typo);
    const std::string block = error_of([&] { read_config(with_key(key.parent, typo, key.print()), "t.yaml"); }).block();
    CHECK(block.find("did you mean " + key.name + "? write `" + key.name + ": " + key.print() + "`") !=
          std::string::npos);
    const std::string typo_path = key.parent.empty() ? typo : key.parent + "." + typo;
    const std::string set_block =
        error_of([&] { read_config("data: {path: d}\n", "t.yaml", {typo_path + "=" + key.print()}); }).block();
    CHECK(set_block.find("did you mean --set " + key.path + "=") != std::string::npos);
  }
}

TEST_CASE("keys at a wrong level and names of other trainers lead to the right key", "[config][keys]") {
  Config config;
  const std::vector<ConfigKey> keys = config_keys(config);
  const std::tuple<const char*, const char*, const char*> cases[] = {
      {"", "top_k", "model.moe.top_k"},
      {"train", "lr", "optim.lr"},
      {"model", "num_experts", "model.moe.num_experts"},
      {"", "train.steps", "train.steps"},
      {"", "moe.top_k", "model.moe.top_k"},
      {"optim", "learning_rate", "optim.lr"},
      {"model", "num_layers", "model.layers"},
      {"model", "hidden_size", "model.hidden"},
      {"model", "num_attention_heads", "model.heads"},
      {"model", "num_key_value_heads", "model.kv_heads"},
      {"model.moe", "num_experts_per_tok", "model.moe.top_k"},
      {"train", "global_batch_size", "train.batch_size"},
      {"train", "micro_batch_size", "train.micro_batch"},
      {"data", "max_seq_len", "data.seq_len"},
      {"optim", "max_grad_norm", "optim.grad_clip"},
      {"", "optimizer", "optim"},
  };
  for (const auto& [parent, name, want] : cases) {
    CAPTURE(parent, name);
    const ConfigKey* nearest = nearest_key(keys, parent, name);
    REQUIRE(nearest != nullptr);
    CHECK(nearest->path == want);
  }
  CHECK(nearest_key(keys, "train", "frobnicate") == nullptr);
  CHECK(nearest_key(keys, "train", std::string(1 << 20, 'x')) == nullptr);
}

TEST_CASE("docs/configuration.md is what the structs say", "[config][keys]") {
  const std::string stored =
      real_file_system().read_text(std::string(OCTET_SOURCE_DIR) + "/docs/configuration.md", 1 << 20);
  INFO("write it anew: octet docs configuration > docs/configuration.md");
  CHECK((stored == configuration_reference()));
}

TEST_CASE("every key has a type, a default that reads back and one line of documentation", "[config][keys]") {
  Config config;
  std::set<std::string> paths;
  for (const ConfigKey& key : config_keys(config)) {
    CAPTURE(key.path);
    CHECK(paths.insert(key.path).second);
    CHECK(key.documentation.size() >= 5);
    CHECK(key.documentation.find('\n') == std::string::npos);
    CHECK(key.documentation.back() != '.');
  }
}

}  // namespace octet::test
