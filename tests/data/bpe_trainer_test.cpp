#include "tools/data/bpe_trainer.h"

#include <map>

#include "tests/data/text_support.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

// The definition in tools/data/bpe_trainer.h, with all pairs counted anew for every merge.
TokenizerSpec naive_train(const std::vector<std::string>& texts, int64_t vocab_size) {
  const PreTokenizer pre_tokenizer({{.pattern = std::string(kDefaultPattern)}}, "naive");
  PreTokenizer::Scratch scratch(pre_tokenizer);
  std::map<std::string, int64_t> counts;
  std::vector<std::string_view> pieces;
  for (const std::string& text : texts) {
    pre_tokenizer.split(text, scratch, pieces);
    for (const std::string_view piece : pieces) ++counts[std::string(piece)];
  }
  std::vector<std::pair<std::vector<int32_t>, int64_t>> words;
  for (const auto& [word, count] : counts) {
    auto& tokens = words.emplace_back(std::vector<int32_t>(), count).first;
    for (const char c : word) tokens.push_back(uint8_t(c));
  }
  std::vector<std::string> bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.emplace_back(1, char(byte));
  TokenizerSpec spec;
  while (int64_t(bytes.size()) < vocab_size - 1) {
    std::map<std::pair<int32_t, int32_t>, int64_t> pairs;  // sorted: of equals, the lowest pair comes first
    for (const auto& [tokens, count] : words) {
      for (size_t i = 0; i + 1 < tokens.size(); ++i) pairs[{tokens[i], tokens[i + 1]}] += count;
    }
    std::pair<int32_t, int32_t> best;
    int64_t most = 1;
    for (const auto& [pair, count] : pairs) {
      if (count > most) most = count, best = pair;
    }
    if (most < 2) break;
    const std::string joined = bytes[size_t(best.first)] + bytes[size_t(best.second)];
    const auto known = std::find(bytes.begin(), bytes.end(), joined);
    const auto id = int32_t(known - bytes.begin());
    if (known == bytes.end()) bytes.push_back(joined);
    const std::pair merge{bytes[size_t(best.first)], bytes[size_t(best.second)]};
    if (std::find(spec.merges.begin(), spec.merges.end(), merge) == spec.merges.end()) spec.merges.push_back(merge);
    for (auto& [tokens, count] : words) {
      std::vector<int32_t> next;
      for (size_t i = 0; i < tokens.size(); ++i) {
        if (i + 1 < tokens.size() && tokens[i] == best.first && tokens[i + 1] == best.second) {
          next.push_back(id);
          ++i;
        } else {
          next.push_back(tokens[i]);
        }
      }
      tokens = next;
    }
  }
  for (size_t id = 0; id < bytes.size(); ++id) spec.vocab.emplace_back(bytes[id], int64_t(id));
  return spec;
}

TokenizerSpec train(const std::vector<std::string>& texts, int64_t vocab_size, int threads = 1) {
  ThreadPool pool(threads);
  WordCounter words;
  words.add(texts, pool);
  return train_bpe(words, vocab_size);
}

}  // namespace

TEST_CASE("training follows its definition", "[data][bpe_trainer]") {
  const uint64_t seed = GENERATE(1, 2, 3);
  const auto texts = random_texts(10, 200, seed * 1000);
  const TokenizerSpec got = train(texts, 360), wanted = naive_train(texts, 360);
  CHECK(got.merges == wanted.merges);
  CHECK(got.vocab == wanted.vocab);
  REQUIRE(got.added_tokens.size() == 1);
  CHECK(got.added_tokens[0].content == "<|endoftext|>");
  CHECK(got.added_tokens[0].id == int32_t(got.vocab.size()));
}

TEST_CASE("ties go to the lowest ids", "[data][bpe_trainer]") {
  // "bc" and "ab" are equally frequent; 'a' is the lower left id.
  const TokenizerSpec spec = train({"ab", "bc", "bc", "ab"}, 258);
  REQUIRE(spec.merges.size() == 1);
  CHECK(spec.merges[0] == std::pair<std::string, std::string>{"a", "b"});
}

TEST_CASE("a trained tokenizer does not depend on threads or the order of the texts", "[data][bpe_trainer]") {
  auto texts = random_texts(40, 100, 7);
  const std::string one = to_tokenizer_json(train(texts, 400, 1));
  CHECK(to_tokenizer_json(train(texts, 400, 4)) == one);
  std::reverse(texts.begin(), texts.end());
  CHECK(to_tokenizer_json(train(texts, 400, 3)) == one);
}

TEST_CASE("training stops where nothing occurs twice", "[data][bpe_trainer]") {
  const TokenizerSpec spec = train({"abcdef"}, 1000);
  CHECK(spec.merges.empty());
  CHECK(spec.vocab.size() == 256);
  CHECK(train({}, 300).vocab.size() == 256);
  CHECK(train({std::string(100'000, 'a')}, 300).merges.empty());  // data, not a word
}

TEST_CASE("a vocabulary size that cannot be is an argument error", "[data][bpe_trainer]") {
  for (const int64_t size : {int64_t(-1), int64_t(0), kMinVocabSize - 1, kMaxVocabSize + 1}) {
    CHECK(error_of([&] { train({"a"}, size); }).kind() == ErrorKind::kArgument);
  }
  CHECK(train({"aa aa"}, kMinVocabSize).merges.empty());
}

TEST_CASE("a trained tokenizer reads back any text", "[data][bpe_trainer]") {
  const Tokenizer& tokenizer = small_tokenizer();
  CHECK(tokenizer.vocab_size() == 340);
  CHECK(tokenizer.eos_id() == 339);
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const std::string text = random_bytes(300, seed) + random_text(100, seed);
    CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
  }
}

}  // namespace octet::test
