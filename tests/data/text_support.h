// Texts and tokenizers for the tests of the data room.
#pragma once

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "core/base/file_system.h"
#include "core/base/random.h"
#include "tools/data/bpe_trainer.h"
#include "tools/data/tokenizer.h"

namespace octet::test {

inline const std::string kTokenizers = std::string(OCTET_SOURCE_DIR) + "/tests/corpus/tokenizer/";
inline const std::string kShards = std::string(OCTET_SOURCE_DIR) + "/tests/corpus/token_shard/";

inline void put(FileSystem& files, const std::string& path, std::string_view bytes) {
  files.create(path)->append(bytes.data(), bytes.size());
}

inline std::string random_bytes(size_t n, uint64_t seed) {
  const RandomStream stream(seed, "test/bytes");
  std::string bytes(n, '\0');
  for (size_t i = 0; i < n; ++i) bytes[i] = char(stream.bits(i));
  return bytes;
}

// Words, numbers, white space, punctuation and other scripts, with now and then a byte that no character has.
inline std::string random_text(size_t pieces, uint64_t seed, bool is_valid = false) {
  static const std::vector<std::string> kPieces = {"the",
                                                   " router",
                                                   " expert",
                                                   "s",
                                                   " a",
                                                   "b",
                                                   "ab",
                                                   "abc",
                                                   "'s",
                                                   "'LL",
                                                   "\n",
                                                   "\n\n",
                                                   "\r\n",
                                                   "  ",
                                                   " ",
                                                   "\t",
                                                   "1",
                                                   "23",
                                                   "4567",
                                                   "(",
                                                   ")",
                                                   "{",
                                                   "};",
                                                   "...",
                                                   "!",
                                                   "ü",
                                                   "é",
                                                   "ж",
                                                   "мир",
                                                   "专家",
                                                   "トー",
                                                   "🙂",
                                                   "\u200d",
                                                   "²",
                                                   "\u00a0",
                                                   "\u3000",
                                                   "<|endoftext|>",
                                                   "<think>",
                                                   "aaaaaaaa",
                                                   "e\u0301"};
  static const std::vector<std::string> kBroken = {"\xff", "\xc3", "\xe4\xb8", "\x80\x80", "\xed\xa0\x80", "\xf5"};
  const RandomStream stream(seed, "test/text");
  std::string text;
  for (size_t i = 0; i < pieces; ++i) {
    const bool is_broken = !is_valid && stream.below(20, i, 1) == 0;
    const auto& from = is_broken ? kBroken : kPieces;
    text += from[stream.below(from.size(), i)];
  }
  return text;
}

inline std::vector<std::string> random_texts(size_t n, size_t pieces, uint64_t seed) {
  std::vector<std::string> texts;
  for (size_t i = 0; i < n; ++i) texts.push_back(random_text(pieces, seed + i));
  return texts;
}

// A tokenizer trained on such texts, the same each time.
inline const Tokenizer& small_tokenizer() {
  static const Tokenizer tokenizer = [] {
    ThreadPool pool(1);
    WordCounter words;
    words.add(random_texts(20, 400, 100), pool);
    return Tokenizer::from_json(to_tokenizer_json(train_bpe(words, 340)), "small tokenizer");
  }();
  return tokenizer;
}

}  // namespace octet::test
