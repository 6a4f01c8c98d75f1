#include "tools/data/tokenizer.h"

#include <algorithm>
#include <limits>

#include "core/base/fault_file_system.h"
#include "core/io/json.h"
#include "tests/data/text_support.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
using namespace std::string_literals;
namespace {

// The definition in tools/data/tokenizer.h, step by step: all pairs are looked at for every merge.
std::vector<int32_t> naive_encode(const TokenizerSpec& spec, std::string_view text) {
  const auto id_of = [&](const std::string& token) {
    for (const auto& [bytes, id] : spec.vocab) {
      if (bytes == token) return int32_t(id);
    }
    return -1;
  };
  const PreTokenizer pre_tokenizer(spec.steps, "naive");
  PreTokenizer::Scratch scratch(pre_tokenizer);
  std::vector<std::string_view> pieces;
  pre_tokenizer.split(text, scratch, pieces);
  std::vector<int32_t> ids;
  for (const std::string_view piece : pieces) {
    if (spec.ignore_merges && id_of(std::string(piece)) >= 0) {
      ids.push_back(id_of(std::string(piece)));
      continue;
    }
    std::vector<std::string> tokens;
    for (const char c : piece) tokens.emplace_back(1, c);
    while (true) {
      size_t best_rank = std::numeric_limits<size_t>::max(), best_at = 0;
      for (size_t i = 0; i + 1 < tokens.size(); ++i) {
        const auto found = std::find(spec.merges.begin(), spec.merges.end(), std::pair{tokens[i], tokens[i + 1]});
        const auto rank = size_t(found - spec.merges.begin());
        if (found != spec.merges.end() && rank < best_rank) best_rank = rank, best_at = i;
      }
      if (best_rank == std::numeric_limits<size_t>::max()) break;
      tokens[best_at] += tokens[best_at + 1];
      tokens.erase(tokens.begin() + int64_t(best_at) + 1);
    }
    for (const std::string& token : tokens) ids.push_back(id_of(token));
  }
  return ids;
}

}  // namespace

TEST_CASE("decoding gives back any bytes", "[data][tokenizer]") {
  const std::string name = GENERATE("gpt2", "llama3", "qwen2", "deepseek_v3");
  const Tokenizer tokenizer = Tokenizer::load(real_file_system(), kTokenizers + name + ".json");
  std::vector<std::string> texts = {"",     "\0\0a\0"s,  "\xff",    "\xf4\x90\x80\x80", "a\xe4\xb8",
                                    "\xef", "é\xc3\x28", "\r\n\r ", "<|endoftext|>"};
  for (uint64_t seed = 0; seed < 100; ++seed) {
    texts.push_back(random_bytes(size_t(seed * 7), seed));
    texts.push_back(random_text(seed, seed));
  }
  std::string all_bytes;
  for (int byte = 0; byte < 256; ++byte) all_bytes += char(byte);
  texts.push_back(all_bytes);
  for (const std::string& text : texts) {
    CAPTURE(name, to_byte_alphabet(text));
    CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
    CHECK(tokenizer.decode(tokenizer.encode(text, SpecialTokens::kAsTokens)) == text);
  }
}

TEST_CASE("encoding follows its definition", "[data][tokenizer]") {
  const std::string name = GENERATE("gpt2", "llama3", "deepseek_v3", "trained here");
  const std::string json =
      name == "trained here" ? small_tokenizer().json() : real_file_system().read_text(kTokenizers + name + ".json");
  const Tokenizer tokenizer = Tokenizer::from_json(json, name);
  TokenizerSpec spec = parse_tokenizer_json(json, name);
  Encoder encoder(tokenizer);  // one for all texts: what it remembers must not matter
  for (uint64_t seed = 0; seed < 60; ++seed) {
    std::string text = random_text(seed, seed + 1000);
    for (size_t at; (at = text.find("think")) != std::string::npos;) text.erase(at, 5);  // an added token
    CAPTURE(name, to_byte_alphabet(text));
    std::vector<int32_t> tokens;
    encoder.encode(text, tokens);
    CHECK(tokens == naive_encode(spec, text));
  }
  const std::string long_run(5000, 'a');
  CHECK(tokenizer.encode(long_run) == naive_encode(spec, long_run));
}

// The ids were computed by the Hugging Face library (tokenizers 0.23.3), which also trained these small vocabularies.
TEST_CASE("tokens are those of the Hugging Face library", "[data][tokenizer]") {
  const std::string path = kTokenizers + "expected_ids.json";
  const Json expected = read_json(real_file_system(), path, ErrorKind::kData);
  const JsonSource source{.kind = ErrorKind::kData, .file = path};
  const std::string name = GENERATE("gpt2", "llama3", "qwen2", "deepseek_v3");
  const Tokenizer tokenizer = Tokenizer::load(real_file_system(), kTokenizers + name + ".json");
  const JsonCursor cases = JsonCursor(expected, source)[name];
  REQUIRE(cases.size() > 15);
  for (size_t i = 0; i < cases.size(); ++i) {
    const std::string& text = cases.at(i)["text"].as_string();
    std::vector<int32_t> ids;
    for (size_t k = 0; k < cases.at(i)["ids"].size(); ++k) {
      ids.push_back(int32_t(cases.at(i)["ids"].at(k).as_int64()));
    }
    CAPTURE(name, text);
    CHECK(tokenizer.encode(text, SpecialTokens::kAsTokens) == ids);
  }
}

TEST_CASE("special tokens in text are text unless they are asked for", "[data][tokenizer]") {
  const Tokenizer tokenizer = Tokenizer::load(real_file_system(), kTokenizers + "deepseek_v3.json");
  const std::string eos = "<｜end▁of▁sentence｜>";
  CHECK(tokenizer.eos_id() == tokenizer.added_token_id(eos));
  CHECK(tokenizer.bos_id() == tokenizer.added_token_id("<｜begin▁of▁sentence｜>"));
  CHECK(tokenizer.decode_token(tokenizer.eos_id()) == eos);
  CHECK(tokenizer.encode(eos, SpecialTokens::kAsTokens) == std::vector{tokenizer.eos_id()});
  const auto as_text = tokenizer.encode("a" + eos);
  CHECK(std::find(as_text.begin(), as_text.end(), tokenizer.eos_id()) == as_text.end());
  CHECK(tokenizer.decode(as_text) == "a" + eos);
  // An added token that is not special is always a token.
  const int32_t think = tokenizer.added_token_id("<think>");
  REQUIRE(think >= 0);
  CHECK(tokenizer.encode("<think>") == std::vector{think});

  const Tokenizer llama = Tokenizer::load(real_file_system(), kTokenizers + "llama3.json");
  CHECK(llama.bos_id() == llama.added_token_id("<|begin_of_text|>"));
  CHECK(llama.eos_id() == llama.added_token_id("<|end_of_text|>"));
  CHECK(llama.added_token_id("<|nobody|>") == -1);
}

TEST_CASE("a saved tokenizer is the same bytes, and a written one the same tokens", "[data][tokenizer]") {
  const std::string name = GENERATE("gpt2", "llama3", "qwen2", "deepseek_v3");
  const TemporaryDirectory directory;
  const Tokenizer tokenizer = Tokenizer::load(real_file_system(), kTokenizers + name + ".json");
  tokenizer.save(real_file_system(), directory / "tokenizer.json");
  CHECK(real_file_system().read_text(directory / "tokenizer.json") == tokenizer.json());
  CHECK(Tokenizer::load(real_file_system(), directory / "tokenizer.json").digest() == tokenizer.digest());

  const std::string written = to_tokenizer_json(parse_tokenizer_json(tokenizer.json(), name));
  const Tokenizer again = Tokenizer::from_json(written, "written");
  CHECK(to_tokenizer_json(parse_tokenizer_json(written, "written")) == written);
  CHECK(again.vocab_size() == tokenizer.vocab_size());
  CHECK(again.eos_id() == tokenizer.eos_id());
  CHECK(again.bos_id() == tokenizer.bos_id());
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const std::string text = random_text(30, seed);
    CHECK(again.encode(text) == tokenizer.encode(text));
    CHECK(again.encode(text, SpecialTokens::kAsTokens) == tokenizer.encode(text, SpecialTokens::kAsTokens));
  }
}

TEST_CASE("hostile tokenizer files are refused with exit code 3", "[data][tokenizer]") {
  const std::string path = kTokenizers + "expected.json";
  const Json expected = read_json(real_file_system(), path, ErrorKind::kData);
  REQUIRE(expected.if_object()->size() >= 65);
  for (const auto& [name, message] : *expected.if_object()) {
    CAPTURE(name);
    const Error error = error_of([&] { Tokenizer::load(real_file_system(), kTokenizers + name + ".json"); });
    CHECK(error.kind() == ErrorKind::kData);
    CHECK(error.code() == 3);
    CHECK_THAT(error.report().what, Catch::Contains(*message.if_string()));
    CHECK_THAT(error.report().what, Catch::Contains(name + ".json"));
  }
  CHECK_NOTHROW(Tokenizer::load(real_file_system(), kTokenizers + "tiny.json"));  // of which the cases were made
}

TEST_CASE("a tokenizer file of any size is refused in bounded memory", "[data][tokenizer]") {
  FaultFileSystem files;
  put(files, "large.json", std::string(Tokenizer::kMaxJsonBytes + 1, ' '));
  CHECK(error_of([&] { Tokenizer::load(files, "large.json"); }).kind() == ErrorKind::kData);
  std::string many = "[0";
  for (int i = 0; i < 5'000'000; ++i) many += ",0";
  const Error error = error_of([&] { Tokenizer::from_json(many + "]", "many"); });
  CHECK(error.kind() == ErrorKind::kData);
  CHECK_THAT(error.report().what, Catch::Contains("values"));
}

TEST_CASE("a few unused ids are allowed and never decoded as another token", "[data][tokenizer]") {
  std::string json = real_file_system().read_text(kTokenizers + "tiny.json");
  const std::string id = "\"id\":258";
  json.replace(json.find(id), id.size(), "\"id\":300");
  const Tokenizer tokenizer = Tokenizer::from_json(json, "gap");
  CHECK(tokenizer.vocab_size() == 301);
  CHECK(tokenizer.eos_id() == 300);
  CHECK(tokenizer.decode_token(299).empty());
}

TEST_CASE("tokens outside the vocabulary are data errors", "[data][tokenizer]") {
  const Tokenizer tokenizer = Tokenizer::load(real_file_system(), kTokenizers + "tiny.json");
  for (const int32_t token : {-1, int32_t(tokenizer.vocab_size()), INT32_MAX, INT32_MIN}) {
    CHECK(error_of([&] { tokenizer.decode_token(token); }).kind() == ErrorKind::kData);
    CHECK(error_of([&] { tokenizer.decode(std::vector{token}); }).kind() == ErrorKind::kData);
  }
}

TEST_CASE("a piece of a million bytes is encoded in linear time", "[data][tokenizer]") {
  // Naive merging would take 10^12 steps. Letters without a break are one piece.
  std::string text;
  const RandomStream stream(3, "test/letters");
  for (uint64_t i = 0; i < 1'000'000; ++i) text += char('a' + stream.below(4, i));
  const Tokenizer tokenizer = Tokenizer::load(real_file_system(), kTokenizers + "tiny.json");
  const auto tokens = tokenizer.encode(text);
  CHECK(tokens.size() < text.size());
  CHECK(tokenizer.decode(tokens) == text);
}

TEST_CASE("the byte alphabet has one character per byte", "[data][tokenizer]") {
  std::string all, back;
  for (int byte = 0; byte < 256; ++byte) all += char(byte);
  CHECK(from_byte_alphabet(to_byte_alphabet(all), back));
  CHECK(back == all);
  CHECK(to_byte_alphabet(" a\n") == "Ġa\u010a");
  CHECK_FALSE(from_byte_alphabet("a b", back));
  CHECK_FALSE(from_byte_alphabet("\u0144", back));
  CHECK_FALSE(from_byte_alphabet("专", back));
  CHECK_FALSE(from_byte_alphabet("\xc4", back));
}

}  // namespace octet::test
