#include "tools/data/pre_tokenizer.h"

#include "tests/data/text_support.h"
#include "tests/support/temporary_directory.h"
#include "tools/data/utf8.h"

namespace octet::test {
namespace {

using Pieces = std::vector<std::string>;

Pieces split(std::vector<SplitStep> steps, const std::string& text) {
  const PreTokenizer pre_tokenizer(std::move(steps), "test");
  PreTokenizer::Scratch scratch(pre_tokenizer);
  std::vector<std::string_view> pieces;
  pre_tokenizer.split(text, scratch, pieces);
  return {pieces.begin(), pieces.end()};
}
SplitStep step(std::string pattern, SplitBehavior behavior = SplitBehavior::kIsolated, bool invert = false) {
  return {.pattern = std::move(pattern), .behavior = behavior, .invert = invert};
}

}  // namespace

TEST_CASE("the built-in patterns cut words, numbers and white space", "[data][pre_tokenizer]") {
  CHECK(split({step(std::string(kGpt2Pattern))}, "I'm  here, 2024!\n\n x") ==
        Pieces{"I", "'m", " ", " here", ",", " 2024", "!", "\n\n", " x"});
  CHECK(split({step(std::string(kDefaultPattern))}, "I'M  here, 20245!\n\n x") ==
        Pieces{"I", "'M", " ", " here", ",", " ", "202", "45", "!\n\n", " x"});
  CHECK(split({step(std::string(kDefaultPattern))}, "für  专家") == Pieces{"für", " ", " 专家"});
}

TEST_CASE("each behavior keeps all of the text and cuts it in its own way", "[data][pre_tokenizer]") {
  const std::string text = "the-final--countdown";
  CHECK(split({step("-")}, text) == Pieces{"the", "-", "final", "-", "-", "countdown"});
  CHECK(split({step("-", SplitBehavior::kMergedWithPrevious)}, text) == Pieces{"the-", "final-", "-", "countdown"});
  CHECK(split({step("-", SplitBehavior::kMergedWithNext)}, text) == Pieces{"the", "-final", "-", "-countdown"});
  CHECK(split({step("-", SplitBehavior::kContiguous)}, text) == Pieces{"the", "-", "final", "--", "countdown"});
  CHECK(split({step("[a-z]+", SplitBehavior::kMergedWithPrevious, /*invert=*/true)}, text) ==
        Pieces{"the-", "final--", "countdown"});
  CHECK(split({{.pattern = "f.", .is_literal = true}}, "f.fo") == Pieces{"f.", "fo"});
  CHECK(split({step("[0-9]"), step("[a-z]")}, "a1b") == Pieces{"a", "1", "b"});
  CHECK(split({}, "all of it") == Pieces{"all of it"});
  CHECK(split({step("x*")}, "axxb") == Pieces{"a", "xx", "b"});  // empty matches cut nothing
  CHECK(split({step("(?=b)")}, "abé") == Pieces{"abé"});
  CHECK(split({step("a")}, "").empty());
}

TEST_CASE("bytes that are no characters are pieces of their own", "[data][pre_tokenizer]") {
  CHECK(split({step(std::string(kGpt2Pattern))}, "ab\xff\xfe c\xc3") == Pieces{"ab", "\xff\xfe", " c", "\xc3"});
  CHECK(split({step(std::string(kGpt2Pattern))}, "\xed\xa0\x80") == Pieces{"\xed\xa0\x80"});
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const std::string text = seed % 2 == 0 ? random_bytes(200, seed) : random_text(60, seed);
    for (const auto pattern : {kGpt2Pattern, kDefaultPattern}) {
      std::string joined;
      for (const std::string& piece : split({step(std::string(pattern))}, text)) {
        CHECK_FALSE(piece.empty());
        joined += piece;
      }
      CHECK(joined == text);
    }
  }
}

TEST_CASE("UTF-8 is what RFC 3629 says", "[data][pre_tokenizer]") {
  for (uint32_t code_point = 0; code_point <= 0x10ffff; code_point += code_point < 0x3000 ? 1 : 97) {
    if (code_point >= 0xd800 && code_point < 0xe000) continue;
    std::string text;
    append_utf8(text, code_point);
    if (utf8_length(text, 0) != text.size()) FAIL("U+" << std::hex << code_point);
    for (size_t cut = 1; cut < text.size(); ++cut) CHECK(utf8_length(text.substr(0, cut), 0) == 0);
  }
  for (const char* bad :
       {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xed\xbf\xbf", "\xf0\x8f\xbf\xbf",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xc3(", "\xe2\x28\xa1"}) {
    CHECK(utf8_length(bad, 0) == 0);
  }
  CHECK(utf8_run_end("twelve bytes\xff after", 0) == 12);
}

TEST_CASE("a pattern that backtracks without bound is stopped", "[data][pre_tokenizer]") {
  // No probe has this character, so the pattern shows itself on the text only.
  const PreTokenizer pre_tokenizer({step("(€+)+x|.")}, "hostile.json");
  PreTokenizer::Scratch scratch(pre_tokenizer);
  std::vector<std::string_view> pieces;
  std::string text;
  for (int i = 0; i < 100; ++i) text += "€";
  const Error error = error_of([&] { pre_tokenizer.split(text + "yx", scratch, pieces); });
  CHECK(error.kind() == ErrorKind::kData);
  CHECK_THAT(error.report().what, Catch::Contains("hostile.json") && Catch::Contains("gave up"));
}

TEST_CASE("megabytes of one kind of character are cut", "[data][pre_tokenizer]") {
  for (const std::string unit : {" ", "\n", "a", "!", "1", "\t ", "é"}) {
    std::string text;
    while (text.size() < 3'000'000) text += unit;
    for (const auto pattern : {kGpt2Pattern, kDefaultPattern}) {
      size_t bytes = 0;
      for (const std::string& piece : split({step(std::string(pattern))}, text)) bytes += piece.size();
      CHECK(bytes == text.size());
    }
  }
}

}  // namespace octet::test
