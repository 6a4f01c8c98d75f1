// Learns a byte-level BPE vocabulary from text (arXiv:1508.07909 on bytes). Words are the pieces of the pre-tokenizer;
// merges never cross a word. Each step joins the pair of neighbouring tokens that is most frequent in the text; of
// equally frequent pairs, the one with the lower left id, then the lower right id.
// Ids: byte b is token b, then one token per merge in order, then the special token "<|endoftext|>".
// The result depends on the words and their counts only: not on the order of the text nor on the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/base/thread_pool.h"
#include "tools/data/tokenizer.h"

namespace octet {

inline constexpr std::string_view kEndOfText = "<|endoftext|>";
inline constexpr int64_t kMinVocabSize = 257;  // the bytes and the special token
inline constexpr int64_t kMaxVocabSize = 1 << 20;

// The pre-tokenizer of a new tokenizer: words with the one character before them, contractions, numbers by up to three
// digits, punctuation with its line ends, white space up to a line end. It is the one of Llama 3, so that exported
// tokenizers are read by every program that reads that model's.
inline constexpr std::string_view kDefaultPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

class WordCounter {
 public:
  // Counts the words of the texts, by several threads; words longer than 256 bytes are left out.
  void add(std::span<const std::string> texts, ThreadPool& pool);
  int64_t num_words() const { return int64_t(counts_.size()); }

 private:
  friend TokenizerSpec train_bpe(const WordCounter&, int64_t, const std::function<void(int64_t, int64_t)>&);
  PreTokenizer pre_tokenizer_{{SplitStep{.pattern = std::string(kDefaultPattern)}}, "built-in tokenizer"};
  std::unordered_map<std::string, int64_t> counts_;
};

// vocab_size counts the bytes and the special token. The vocabulary is smaller where no pair is left that occurs
// twice. progress(merges done, merges wanted) is called now and then.
TokenizerSpec train_bpe(const WordCounter& words, int64_t vocab_size,
                        const std::function<void(int64_t, int64_t)>& progress = {});

}  // namespace octet
