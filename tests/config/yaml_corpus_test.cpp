// The stored files of tests/corpus/yaml, each with what must be said about it, and files too large to store.
#include <catch2/catch.hpp>
#include <fstream>
#include <set>
#include <sstream>

#include "core/base/error.h"
#include "tests/support/memory.h"
#include "tests/support/temporary_directory.h"
#include "tools/train/yaml_reader.h"

namespace octet::test {
namespace {

constexpr uint64_t kMemoryBound = uint64_t(64) << 20;
constexpr double kSecondsBound = 0.5;  // of processor time; on a quiet machine none takes 0.1

const std::string kCorpus = std::string(OCTET_SOURCE_DIR) + "/tests/corpus/yaml";

struct Case {
  std::string name, place, message;
  int code = 0;
};

std::vector<Case> stored_cases() {
  std::vector<Case> cases;
  std::istringstream lines(real_file_system().read_text(kCorpus + "/expected.txt"));
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line[0] == '#') continue;
    const size_t a = line.find(" | "), b = line.find(" | ", a + 1), c = line.find(" | ", b + 1);
    REQUIRE(c != std::string::npos);
    cases.push_back({.name = line.substr(0, a),
                     .place = b + 3 < c ? line.substr(b + 3, c - b - 3) : std::string(),
                     .message = line.substr(c + 3),
                     .code = std::stoi(line.substr(a + 3, b - a - 3))});
  }
  return cases;
}

// `begin`, and then `text` as often as the size allows.
std::string repeated(const std::string& text, size_t bytes, const std::string& begin = {}) {
  std::string all = begin;
  all.reserve(bytes);
  while (all.size() + text.size() <= bytes) all += text;
  return all;
}

}  // namespace

TEST_CASE("every stored hostile file is refused with its code, place and message", "[config][corpus]") {
  const std::vector<Case> cases = stored_cases();
  CHECK(cases.size() >= 120);
  std::set<std::string> names = {"expected.txt"};
  for (const Case& each : cases) {
    CAPTURE(each.name);
    names.insert(each.name + ".yaml");
    const std::string path = join_path(kCorpus, each.name + ".yaml");
    const Cost cost;
    const Error error = error_of([&] { load_config(real_file_system(), path); });
    CHECK(cost.is_within(kMemoryBound, kSecondsBound));
    CHECK(error.code() == each.code);
    const std::string block = error.block();
    CAPTURE(block);
    CHECK(block.find(each.message) != std::string::npos);
    if (!each.place.empty()) CHECK(block.find("where: " + path + ":" + each.place + "\n") != std::string::npos);
    // What reaches a terminal holds no control characters.
    for (const char c : block) CHECK((c == '\n' || uint8_t(c) >= 0x20));
  }
  for (const std::string& name : real_file_system().list(kCorpus)) {
    INFO(name << " has no line in expected.txt");
    CHECK(names.count(name) == 1);
  }
}

TEST_CASE("files made to cost time or memory are refused within bounds", "[config][corpus]") {
  constexpr size_t kFull = kMaxConfigBytes - 64;
  const std::pair<const char*, std::string> files[] = {
      {"flow maps in one line", repeated("a: 1, ", kFull, "{")},
      {"flow map over lines", repeated("a: 1,\n", kFull, "{\n")},
      {"flow map of keys", repeated("a:\n", kFull, "{\n")},
      {"commas", repeated(",", kFull, "{")},
      {"brackets", repeated("[\n", kFull)},
      {"pairs of brackets", repeated("[]", kFull)},
      {"anchors", repeated("&a ", kFull)},
      {"aliases", repeated("*a\n", kFull)},
      {"tags", repeated("!a ", kFull)},
      {"quotes", repeated("'", kFull)},
      {"colons", repeated(":", kFull)},
      {"documents", repeated("---\n", kFull)},
      {"directives", repeated("%YAML 1.2\n", kFull)},
      {"keys", repeated("k: 1\n", kFull)},
      {"entries", repeated(" - a\n", kFull, "model:\n")},
      {"tabs", repeated("\t\n", kFull)},
      {"carriage returns", repeated("\r", kFull)},
      {"bytes that are not UTF-8", repeated("\xff\n", kFull)},
      {"one scalar", repeated("x", kFull, "model: ")},
      {"one scalar in lines", repeated("  x\n", kFull, "model:\n")},
      {"one quoted scalar", repeated("x\n", kFull, "model: \"")},
      {"block scalar", repeated("  x\n", kFull, "model: |\n")},
  };
  for (const auto& [name, text] : files) {
    CAPTURE(name);
    const Cost cost;
    CHECK(error_of([&, &yaml = text] { read_config(yaml, "t.yaml"); }).code() == 2);
    CHECK(cost.is_within(kMemoryBound, kSecondsBound));
  }
}

TEST_CASE("the list of reports ends at fifty, whatever the last of them is", "[config][corpus]") {
  std::string unknown;
  for (int i = 0; i < 49; ++i) unknown += fmt::format("key{}: 1\n", i);
  for (const char* last : {"key49: 1\nkey50: 1\n", "a b: [1\n", "model: {a: {b: [\n", "- x\n", "\"\n", "---\n---\n"}) {
    CAPTURE(last);
    const Error error = error_of([&] { read_config(unknown + last, "t.yaml", {"nothing=1"}); });
    CHECK(error.code() == 2);
    CHECK(error.parts().size() >= 50);
    CHECK(error.parts().size() <= 51);
  }
}

TEST_CASE("a file of 200 MB is refused before it is read", "[config][corpus]") {
  const TemporaryDirectory directory;
  const std::string path = directory / "large.yaml";
  std::ofstream(path) << "model: ";
  REQUIRE(::truncate(path.c_str(), 200'000'000) == 0);
  const Cost cost;
  const Error error = error_of([&] { load_config(real_file_system(), path); });
  CHECK(cost.is_within(uint64_t(1) << 20, 0.05));
  CHECK(error.code() == 2);
  CHECK(error.block().find("200000000 bytes; wanted at most 1048576") != std::string::npos);
}

TEST_CASE("what is no file is refused without blocking", "[config][corpus]") {
  const TemporaryDirectory directory;
  FileSystem& files = real_file_system();
  CHECK(error_of([&] { load_config(files, directory.path()); }).code() == 2);
  CHECK(error_of([&] { load_config(files, "/dev/zero"); }).code() == 2);
  files.write_atomically(directory / "quickstart.yaml", "data: {path: d}\n");
  const std::string block = error_of([&] { load_config(files, directory / "quikstart.yaml"); }).block();
  CHECK(block.find("there is no configuration") != std::string::npos);
  CHECK(block.find("did you mean " + (directory / "quickstart.yaml") + "?") != std::string::npos);
}

}  // namespace octet::test
