#include "tools/data/bpe_trainer.h"

#include <algorithm>
#include <mutex>
#include <queue>

#include "core/base/error.h"

namespace octet {
namespace {

// Longer ones are data that happens to be in text (encoded images, runs of one character): merges learned from them
// would serve nothing else, and they would make a step quadratic.
constexpr size_t kMaxWordBytes = 256;

struct Word {
  std::vector<int32_t> tokens;
  int64_t count = 0;
};

struct Candidate {
  int64_t count;
  uint64_t pair;
  // The top of the queue is the largest count, then the lowest pair.
  bool operator<(const Candidate& other) const {
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

struct PairInfo {
  int64_t count = 0;
  bool is_merged = false;
  std::vector<uint32_t> words;  // that have, or had, the pair; one may be there more than once
};

}  // namespace

void WordCounter::add(std::span<const std::string> texts, ThreadPool& pool) {
  std::mutex mutex;
  pool.for_chunks(int64_t(texts.size()), 8, [&](int64_t begin, int64_t end) {
    PreTokenizer::Scratch scratch(pre_tokenizer_);
    std::vector<std::string_view> pieces;
    std::unordered_map<std::string_view, int64_t> found;
    for (int64_t i = begin; i < end; ++i) {
      pre_tokenizer_.split(texts[size_t(i)], scratch, pieces);
      for (const std::string_view piece : pieces) {
        if (piece.size() <= kMaxWordBytes) ++found[piece];
      }
    }
    const std::lock_guard lock(mutex);  // sums of whole numbers: the order does not matter
    for (const auto& [word, count] : found) counts_[std::string(word)] += count;
  });
}

TokenizerSpec train_bpe(const WordCounter& words, int64_t vocab_size,
                        const std::function<void(int64_t, int64_t)>& progress) {
  require(vocab_size >= kMinVocabSize && vocab_size <= kMaxVocabSize, "vocab size is {}; wanted {} to {}", vocab_size,
          kMinVocabSize, kMaxVocabSize);
  TokenizerSpec spec;
  std::vector<std::string> token_bytes;
  std::unordered_map<std::string, int32_t> id_of;
  for (int byte = 0; byte < 256; ++byte) {
    token_bytes.emplace_back(1, char(byte));
    id_of.emplace(token_bytes.back(), byte);
  }

  std::vector<Word> list;
  {
    std::vector<std::pair<std::string_view, int64_t>> sorted(words.counts_.begin(), words.counts_.end());
    std::sort(sorted.begin(), sorted.end());
    for (const auto& [bytes, count] : sorted) {
      if (bytes.size() < 2) continue;
      Word& word = list.emplace_back();
      for (const char c : bytes) word.tokens.push_back(uint8_t(c));
      word.count = count;
    }
  }
  PairMap<PairInfo> pairs(1 << 16);
  for (size_t w = 0; w < list.size(); ++w) {
    const auto& tokens = list[w].tokens;
    for (size_t i = 0; i + 1 < tokens.size(); ++i) {
      PairInfo& info = pairs[pair_key(tokens[i], tokens[i + 1])];
      info.count += list[w].count;
      if (info.words.empty() || info.words.back() != w) info.words.push_back(uint32_t(w));
    }
  }
  std::priority_queue<Candidate> queue;
  pairs.for_each([&](uint64_t pair, const PairInfo& info) { queue.push({info.count, pair}); });

  const int64_t wanted = vocab_size - 1;  // before the special token
  std::vector<uint64_t> touched;
  while (int64_t(token_bytes.size()) < wanted && !queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    PairInfo* info = pairs.find(best.pair);
    if (info->count != best.count) {  // it fell since it was queued
      if (info->count > 0) queue.push({info->count, best.pair});
      continue;
    }
    if (best.count < 2) break;
    const auto left = int32_t(best.pair >> 32), right = int32_t(uint32_t(best.pair));
    const std::string bytes = token_bytes[size_t(left)] + token_bytes[size_t(right)];
    // Two pairs can make the same bytes ("ab"+"c" and "a"+"bc"); they share the token.
    const auto [entry, is_new] = id_of.emplace(bytes, int32_t(token_bytes.size()));
    const int32_t id = entry->second;
    if (is_new) token_bytes.push_back(bytes);
    // A token that two merges make can bring back a pair whose merge is in the list already.
    if (!info->is_merged) spec.merges.emplace_back(token_bytes[size_t(left)], token_bytes[size_t(right)]);
    info->is_merged = true;

    std::vector<uint32_t> where = std::move(info->words);
    info->words = {};
    std::sort(where.begin(), where.end());
    where.erase(std::unique(where.begin(), where.end()), where.end());
    touched.clear();
    for (const uint32_t w : where) {
      auto& tokens = list[w].tokens;
      const int64_t count = list[w].count;
      const auto change = [&](int32_t a, int32_t b, int64_t by) {
        const uint64_t key = pair_key(a, b);
        PairInfo& pair = pairs[key];
        pair.count += by;
        if (by > 0 && (a == id || b == id)) {  // no other pair can have become more frequent
          if (pair.words.empty() || pair.words.back() != w) pair.words.push_back(w);
          touched.push_back(key);
        }
      };
      // All old pairs are taken off and all new ones put on: simple, and words are at most kMaxWordBytes long.
      const auto change_all = [&](int64_t by) {
        for (size_t i = 0; i + 1 < tokens.size(); ++i) change(tokens[i], tokens[i + 1], by);
      };
      bool is_in_word = false;
      for (size_t i = 0; i + 1 < tokens.size(); ++i) is_in_word |= tokens[i] == left && tokens[i + 1] == right;
      if (!is_in_word) continue;
      change_all(-count);
      size_t to = 0;
      for (size_t i = 0; i < tokens.size(); ++to) {
        if (i + 1 < tokens.size() && tokens[i] == left && tokens[i + 1] == right) {
          tokens[to] = id;
          i += 2;
        } else {
          tokens[to] = tokens[i];
          i += 1;
        }
      }
      tokens.resize(to);
      change_all(count);
    }
    std::sort(touched.begin(), touched.end());
    touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
    for (const uint64_t pair : touched) {
      const int64_t count = pairs.find(pair)->count;
      if (count > 0) queue.push({count, pair});
    }
    if (progress && token_bytes.size() % 256 == 0) progress(int64_t(token_bytes.size()) - 256, wanted - 256);
  }

  for (size_t id = 0; id < token_bytes.size(); ++id) spec.vocab.emplace_back(token_bytes[id], int64_t(id));
  spec.added_tokens.push_back({.content = std::string(kEndOfText), .id = int32_t(token_bytes.size())});
  spec.steps.push_back({.pattern = std::string(kDefaultPattern)});
  return spec;
}

}  // namespace octet
