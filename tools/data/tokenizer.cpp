#include "tools/data/tokenizer.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>

#include "core/base/error.h"
#include "core/base/log.h"
#include "tools/data/digest.h"
#include "tools/data/utf8.h"

namespace octet {
namespace {

// Ids without a token: some published vocabularies have a few. A larger hole is a damaged file, and would make a model
// waste rows of its embedding.
constexpr int64_t kMaxUnusedIds = 4096;
constexpr size_t kMaxTokenBytes = 1 << 16;

// Words longer than this are rare enough to be merged anew each time.
constexpr size_t kMaxWordBytes = 64;
constexpr size_t kEntries = 1 << 16;  // a power of two; at most half are in use

// Names that models give to the token between documents, most specific first.
constexpr std::string_view kEosNames[] = {"<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>"};
constexpr std::string_view kBosNames[] = {"<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "<s>", "<bos>"};

bool is_printable_latin1(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

struct ByteAlphabet {
  std::array<uint32_t, 256> code_point{};
  std::array<int, 0x180> byte_of{};  // -1 where the character stands for no byte
  ByteAlphabet() {
    byte_of.fill(-1);
    uint32_t next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      code_point[byte] = is_printable_latin1(byte) ? byte : next++;
      byte_of[code_point[byte]] = int(byte);
    }
  }
};
const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

std::string quoted(std::string_view bytes) {
  std::string text = to_byte_alphabet(bytes.substr(0, 60));
  return "\"" + text + (bytes.size() > 60 ? "...\"" : "\"");
}

}  // namespace

std::string to_byte_alphabet(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) append_utf8(text, byte_alphabet().code_point[uint8_t(c)]);
  return text;
}

bool from_byte_alphabet(std::string_view text, std::string& bytes) {
  bytes.clear();
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    if (length == 0 || length > 2) return false;  // the alphabet ends below U+0180
    const uint32_t code_point =
        length == 1 ? uint8_t(text[at]) : (uint32_t(text[at]) & 31u) << 6 | (uint32_t(text[at + 1]) & 63u);
    if (code_point >= byte_alphabet().byte_of.size() || byte_alphabet().byte_of[code_point] < 0) return false;
    bytes += char(byte_alphabet().byte_of[code_point]);
    at += length;
  }
  return true;
}

Tokenizer Tokenizer::from_json(std::string json, std::string name) {
  if (json.size() > kMaxJsonBytes) {
    fail(ErrorKind::kData, {.what = fmt::format("{} is {} bytes; wanted at most {}", name, json.size(), kMaxJsonBytes),
                            .where = {},
                            .why = "no vocabulary in use comes near, and reading it could exhaust the memory",
                            .fix = "check that the file is a tokenizer.json"});
  }
  const TokenizerSpec spec = parse_tokenizer_json(json, name);
  return Tokenizer(spec, std::move(json), std::move(name));
}

Tokenizer Tokenizer::load(FileSystem& files, const std::string& path) {
  const uint64_t size = files.info(path).size;
  require(ErrorKind::kData, size <= kMaxJsonBytes, "{} is {} bytes; wanted a tokenizer.json of at most {}", path, size,
          kMaxJsonBytes);
  return from_json(files.read_text(path, kMaxJsonBytes), path);
}

void Tokenizer::save(FileSystem& files, const std::string& path) const { files.write_atomically(path, json_); }

Tokenizer::Tokenizer(const TokenizerSpec& spec, std::string json, std::string name)
    : json_(std::move(json)),
      digest_(hex_digest(digest_of(json_))),
      name_(std::move(name)),
      pre_tokenizer_(spec.steps, name_),
      merges_(spec.merges.size()),
      ignore_merges_(spec.ignore_merges),
      added_tokens_(spec.added_tokens) {
  // Every token's bytes, by id.
  const int64_t num_tokens = int64_t(spec.vocab.size() + spec.added_tokens.size());
  int64_t largest = -1;
  const auto see = [&](std::string_view token, int64_t id) {
    require(ErrorKind::kData, id >= 0 && id < num_tokens + kMaxUnusedIds,
            "{}: token {} has the id {}; wanted 0 to {} for {} tokens", name_, quoted(token), id,
            num_tokens + kMaxUnusedIds - 1, num_tokens);
    require(ErrorKind::kData, token.size() <= kMaxTokenBytes, "{}: token {} has {} bytes; wanted at most {}", name_, id,
            token.size(), kMaxTokenBytes);
    require(ErrorKind::kData, !token.empty(), "{}: token {} is empty", name_, id);
    largest = std::max(largest, id);
  };
  for (const auto& [token, id] : spec.vocab) see(token, id);
  for (const AddedToken& token : spec.added_tokens) see(token.content, token.id);
  std::vector<std::string_view> token_of(size_t(largest + 1));
  const auto place = [&](std::string_view token, int64_t id) {
    std::string_view& slot = token_of[size_t(id)];
    // A special token may stand in the vocabulary too.
    require(ErrorKind::kData, slot.empty() || slot == token, "{}: tokens {} and {} both have the id {}", name_,
            quoted(slot), quoted(token), id);
    slot = token;
  };
  for (const auto& [token, id] : spec.vocab) place(token, id);
  for (const AddedToken& token : spec.added_tokens) place(token.content, token.id);
  const int64_t unused = std::count_if(token_of.begin(), token_of.end(), [](auto token) { return token.empty(); });
  if (unused > 0) {
    const auto hole = std::find_if(token_of.begin(), token_of.end(), [](auto token) { return token.empty(); });
    log_debug("{}: {} of {} ids have no token, the first is {}", name_, unused, largest + 1, hole - token_of.begin());
  }
  token_begin_.push_back(0);
  for (const std::string_view token : token_of) {
    bytes_ += token;
    token_begin_.push_back(bytes_.size());
  }

  std::unordered_map<std::string_view, int32_t> id_of;  // of the tokens that merges work on
  id_of.reserve(spec.vocab.size());
  for (const auto& [token, id] : spec.vocab) id_of.emplace(token, int32_t(id));
  for (unsigned byte = 0; byte < 256; ++byte) {
    const char c = char(byte);
    const auto found = id_of.find(std::string_view(&c, 1));
    if (found == id_of.end()) {
      fail(ErrorKind::kData, {.what = fmt::format("{}: no token for the byte 0x{:02x}", name_, byte),
                              .where = {},
                              .why = "text with this byte could not be written in tokens",
                              .fix = "use a tokenizer whose vocabulary has all 256 bytes"});
    }
    byte_id_[byte] = found->second;
  }
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const auto& [left, right] = spec.merges[rank];
    const auto id_for = [&](const std::string& token) {
      const auto found = id_of.find(token);
      require(ErrorKind::kData, found != id_of.end(),
              "{}: merge {} ({} and {}) needs the token {}, which is not in the vocabulary", name_, rank, quoted(left),
              quoted(right), quoted(token));
      return found->second;
    };
    const int32_t l = id_for(left), r = id_for(right), joined = id_for(left + right);
    const uint64_t key = pair_key(l, r);
    require(ErrorKind::kData, merges_.find(key) == nullptr, "{}: merge {} ({} and {}) is there twice", name_, rank,
            quoted(left), quoted(right));
    merges_[key] = {.rank = uint32_t(rank), .id = joined};
  }
  if (ignore_merges_) {
    for (const auto& [token, id] : spec.vocab) whole_words_.emplace(token, int32_t(id));
  }

  for (const AddedToken& token : added_tokens_) {
    const size_t level = token.normalized ? 1 : 0;
    const auto first = size_t(uint8_t(token.content[0]));
    all_added_[level][first].emplace_back(token.content, token.id);
    has_all_added_[level] = true;
    if (!token.special) {
      plain_added_[level][first].emplace_back(token.content, token.id);
      has_plain_added_[level] = true;
    }
  }
  for (auto* levels : {&plain_added_, &all_added_}) {
    for (AddedByFirstByte& table : *levels) {
      for (auto& tokens : table) {
        std::stable_sort(tokens.begin(), tokens.end(),
                         [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
      }
    }
  }
  for (const std::string_view eos : kEosNames) {
    if (eos_id_ < 0) eos_id_ = added_token_id(eos);
  }
  if (!spec.bos.empty()) bos_id_ = added_token_id(spec.bos);
  for (const std::string_view bos : kBosNames) {
    if (bos_id_ < 0) bos_id_ = added_token_id(bos);
  }
}

int32_t Tokenizer::added_token_id(std::string_view content) const {
  for (const AddedToken& token : added_tokens_) {
    if (token.content == content) return token.id;
  }
  return -1;
}

std::string_view Tokenizer::decode_token(int32_t token) const {
  require(ErrorKind::kData, token >= 0 && token < vocab_size(), "token {} is not in the vocabulary of {}: 0 to {}",
          token, name_, vocab_size() - 1);
  const uint64_t begin = token_begin_[size_t(token)], end = token_begin_[size_t(token) + 1];
  return std::string_view(bytes_).substr(begin, end - begin);
}

std::string Tokenizer::decode(std::span<const int32_t> tokens) const {
  std::string text;
  for (const int32_t token : tokens) text += decode_token(token);
  return text;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, SpecialTokens special) const {
  std::vector<int32_t> tokens;
  Encoder(*this).encode(text, tokens, special);
  return tokens;
}

Encoder::Encoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer), scratch_(tokenizer.pre_tokenizer_) {}

void Encoder::encode(std::string_view text, std::vector<int32_t>& tokens, SpecialTokens special) {
  // Positions in a piece are 31 bits.
  require(ErrorKind::kData, text.size() < (size_t(1) << 31), "a text of {} bytes; wanted less than 2 GiB", text.size());
  encode_around_added(text, tokens, special, 0);
}

void Encoder::encode_around_added(std::string_view text, std::vector<int32_t>& tokens, SpecialTokens special,
                                  size_t level) {
  const bool all = special == SpecialTokens::kAsTokens;
  const auto& has = all ? tokenizer_.has_all_added_ : tokenizer_.has_plain_added_;
  while (level < 2 && !has[level]) ++level;
  if (level == 2) return encode_plain(text, tokens);
  const auto& table = (all ? tokenizer_.all_added_ : tokenizer_.plain_added_)[level];
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const auto& candidates = table[uint8_t(text[at])];
    const auto found = std::find_if(candidates.begin(), candidates.end(), [&](const auto& candidate) {
      return text.substr(at, candidate.first.size()) == candidate.first;
    });
    if (found == candidates.end()) {
      ++at;
      continue;
    }
    encode_around_added(text.substr(done, at - done), tokens, special, level + 1);
    tokens.push_back(found->second);
    done = at += found->first.size();
  }
  encode_around_added(text.substr(done), tokens, special, level + 1);
}

void Encoder::encode_plain(std::string_view text, std::vector<int32_t>& tokens) {
  if (text.empty()) return;
  tokenizer_.pre_tokenizer_.split(text, scratch_, pieces_);
  for (const std::string_view piece : pieces_) encode_piece(piece, tokens);
}

void Encoder::forget() {
  entries_.assign(kEntries, Entry());
  num_entries_ = 0;
  keys_.clear();
  cached_tokens_.clear();
}

void Encoder::encode_piece(std::string_view piece, std::vector<int32_t>& tokens) {
  if (piece.size() == 1) {
    tokens.push_back(tokenizer_.byte_id_[uint8_t(piece[0])]);
    return;
  }
  if (piece.size() > kMaxWordBytes) return merge_piece(piece, tokens);
  if (entries_.empty() || num_entries_ * 2 >= kEntries) forget();
  const uint64_t hash = XXH3_64bits(piece.data(), piece.size()) | 1;  // 0 marks a free entry
  size_t at = size_t(hash >> 32) & (kEntries - 1);
  for (; entries_[at].hash != 0; at = (at + 1) & (kEntries - 1)) {
    const Entry& entry = entries_[at];
    if (entry.hash == hash && entry.key_bytes == piece.size() &&
        std::memcmp(keys_.data() + entry.key_begin, piece.data(), piece.size()) == 0) {
      const int32_t* from = cached_tokens_.data() + entry.tokens_begin;
      tokens.insert(tokens.end(), from, from + entry.num_tokens);
      return;
    }
  }
  const size_t before = tokens.size();
  merge_piece(piece, tokens);
  entries_[at] = {.hash = hash,
                  .key_begin = uint32_t(keys_.size()),
                  .tokens_begin = uint32_t(cached_tokens_.size()),
                  .key_bytes = uint16_t(piece.size()),
                  .num_tokens = uint16_t(tokens.size() - before)};
  keys_ += piece;
  cached_tokens_.insert(cached_tokens_.end(), tokens.begin() + int64_t(before), tokens.end());
  ++num_entries_;
}

// A list of tokens and a heap of the merges that were possible when they were pushed: n log n for n bytes. A popped
// merge is stale where its left token was joined to another, or its pair has become another pair.
void Encoder::merge_piece(std::string_view piece, std::vector<int32_t>& tokens) {
  if (tokenizer_.ignore_merges_) {
    const auto found = tokenizer_.whole_words_.find(std::string(piece));
    if (found != tokenizer_.whole_words_.end()) {
      tokens.push_back(found->second);
      return;
    }
  }
  const int32_t n = int32_t(piece.size());
  symbols_.resize(size_t(n));
  for (int32_t i = 0; i < n; ++i) {
    symbols_[size_t(i)] = {
        .id = tokenizer_.byte_id_[uint8_t(piece[size_t(i)])], .before = i - 1, .after = i + 1 < n ? i + 1 : -1};
  }
  heap_.clear();
  const auto merge_at = [&](int32_t left) -> const Tokenizer::Merge* {
    const Symbol& symbol = symbols_[size_t(left)];
    if (symbol.id < 0 || symbol.after < 0) return nullptr;
    return tokenizer_.merges_.find(pair_key(symbol.id, symbols_[size_t(symbol.after)].id));
  };
  const auto push = [&](int32_t left) {
    if (left < 0) return;
    if (const Tokenizer::Merge* merge = merge_at(left)) {
      heap_.push_back(uint64_t(merge->rank) << 32 | uint32_t(left));
      std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
    }
  };
  for (int32_t i = 0; i + 1 < n; ++i) push(i);
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
    const uint64_t top = heap_.back();
    heap_.pop_back();
    const auto left = int32_t(uint32_t(top));
    const Tokenizer::Merge* merge = merge_at(left);
    if (merge == nullptr || merge->rank != uint32_t(top >> 32)) continue;
    Symbol& symbol = symbols_[size_t(left)];
    Symbol& gone = symbols_[size_t(symbol.after)];
    symbol.id = merge->id;
    symbol.after = gone.after;
    gone.id = -1;
    if (symbol.after >= 0) symbols_[size_t(symbol.after)].before = left;
    push(symbol.before);
    push(left);
  }
  for (int32_t i = 0; i >= 0; i = symbols_[size_t(i)].after) tokens.push_back(symbols_[size_t(i)].id);
}

}  // namespace octet
