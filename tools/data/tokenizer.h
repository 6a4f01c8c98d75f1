// Byte-level byte-pair encoding (arXiv:1508.07909 on bytes), in the file format of the Hugging Face library.
//   1. added tokens ("<|endoftext|>") are cut out of the text, where the caller wants them to be;
//   2. the pre-tokenizer cuts the rest into pieces;
//   3. in each piece, which starts as one token per byte, the neighbours whose merge has the lowest rank are joined,
//      leftmost first, until no two neighbours have a merge.
// Decoding puts the bytes of the tokens one after the other. decode(encode(text)) == text for any bytes.
//
// tokenizer.json as read here: model "BPE" with all 256 byte tokens; pre_tokenizer "ByteLevel", "Split", "Digits" or a
// "Sequence" of them with one "ByteLevel"; normalizer null, an empty "Sequence", or "NFC", which is accepted and not
// applied, because it would change the text (text that is in NFC already, as nearly all text is, has the same tokens);
// any post_processor, of which only the token put first is used, as bos. Everything that would change the tokens and
// is not done here is refused by name.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/base/file_system.h"
#include "tools/data/pair_map.h"
#include "tools/data/pre_tokenizer.h"

namespace octet {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = true;      // a control token: in text from outside it is only text
  bool normalized = false;  // looked for after those that are not
};

// What a tokenizer.json says, with tokens as bytes.
struct TokenizerSpec {
  std::vector<std::pair<std::string, int64_t>> vocab;       // without the added tokens
  std::vector<std::pair<std::string, std::string>> merges;  // by rank
  std::vector<AddedToken> added_tokens;
  std::vector<SplitStep> steps;
  bool ignore_merges = false;  // a piece that is itself a token is that token, whatever the merges say
  std::string bos;             // content; empty where there is none
};

// Parses tokenizer.json. name: the file, for messages. Throws kData.
TokenizerSpec parse_tokenizer_json(std::string_view json, const std::string& name);
// Writes one that the Hugging Face library reads with the same meaning.
std::string to_tokenizer_json(const TokenizerSpec& spec);

// Added tokens in text: kAsText leaves the special ones as the text they are, kAsTokens makes them tokens.
enum class SpecialTokens { kAsText, kAsTokens };

class Tokenizer {
 public:
  static constexpr uint64_t kMaxJsonBytes = 100 << 20;

  // From the content of a tokenizer.json. name: the file, for messages. Throws kData.
  static Tokenizer from_json(std::string json, std::string name);
  static Tokenizer load(FileSystem& files, const std::string& path);
  // Writes the content it was made from, byte for byte.
  void save(FileSystem& files, const std::string& path) const;
  const std::string& json() const { return json_; }
  // XXH3-128 of json(), as 32 hexadecimal digits: two tokenizers with one digest give the same tokens.
  const std::string& digest() const { return digest_; }

  // For many texts, an Encoder is faster: it remembers words.
  std::vector<int32_t> encode(std::string_view text, SpecialTokens special = SpecialTokens::kAsText) const;
  // Throws kData where a token is not one of the vocabulary.
  std::string decode(std::span<const int32_t> tokens) const;
  // The bytes of one token, which may be a part of a character. The view is good for the tokenizer's life.
  std::string_view decode_token(int32_t token) const;

  int64_t vocab_size() const { return int64_t(token_begin_.size()) - 1; }  // the largest id + 1
  int32_t eos_id() const { return eos_id_; }                               // ends a document; -1 where there is none
  int32_t bos_id() const { return bos_id_; }                               // begins one; -1 where there is none
  const std::vector<AddedToken>& added_tokens() const { return added_tokens_; }
  // The id of the added token with this content, or -1.
  int32_t added_token_id(std::string_view content) const;

 private:
  friend class Encoder;
  struct Merge {
    uint32_t rank = 0;
    int32_t id = 0;
  };
  // Added tokens by their first byte, longest first.
  using AddedByFirstByte = std::array<std::vector<std::pair<std::string, int32_t>>, 256>;

  Tokenizer(const TokenizerSpec& spec, std::string json, std::string name);

  std::string json_, digest_, name_;
  PreTokenizer pre_tokenizer_;
  std::string bytes_;                  // of all tokens, one after the other, by id
  std::vector<uint64_t> token_begin_;  // [V + 1] into bytes_
  std::array<int32_t, 256> byte_id_{};
  PairMap<Merge> merges_;
  bool ignore_merges_ = false;
  std::unordered_map<std::string, int32_t> whole_words_;  // only where ignore_merges
  std::vector<AddedToken> added_tokens_;
  // [0] is looked for first: the tokens that are not "normalized", then those that are.
  std::array<AddedByFirstByte, 2> plain_added_, all_added_;  // without and with the special ones
  std::array<bool, 2> has_plain_added_{}, has_all_added_{};
  int32_t eos_id_ = -1, bos_id_ = -1;
};

// Encodes text after text on one thread, and remembers the tokens of the words it met. What it returns never depends
// on what it met before. It must not outlive the tokenizer.
class Encoder {
 public:
  explicit Encoder(const Tokenizer& tokenizer);
  // Appends the tokens of the text.
  void encode(std::string_view text, std::vector<int32_t>& tokens, SpecialTokens special = SpecialTokens::kAsText);

 private:
  struct Entry {  // a remembered word
    uint64_t hash = 0;
    uint32_t key_begin = 0, tokens_begin = 0;
    uint16_t key_bytes = 0, num_tokens = 0;
  };
  struct Symbol {  // a node of the list of tokens in one piece
    int32_t id, before, after;
  };

  void encode_around_added(std::string_view text, std::vector<int32_t>& tokens, SpecialTokens special, size_t level);
  void encode_plain(std::string_view text, std::vector<int32_t>& tokens);
  void encode_piece(std::string_view piece, std::vector<int32_t>& tokens);
  void merge_piece(std::string_view piece, std::vector<int32_t>& tokens);
  void forget();

  const Tokenizer& tokenizer_;
  PreTokenizer::Scratch scratch_;
  std::vector<std::string_view> pieces_;
  std::vector<Entry> entries_;
  size_t num_entries_ = 0;
  std::string keys_;
  std::vector<int32_t> cached_tokens_;
  std::vector<Symbol> symbols_;
  std::vector<uint64_t> heap_;  // rank << 32 | position of the left token
};

// The alphabet that tokenizer.json writes bytes in: the printable characters of Latin-1 stand for themselves, the other
// bytes, in order, for the characters from U+0100 on. Throws nothing; from_byte_alphabet returns false where a
// character is not one of the 256.
std::string to_byte_alphabet(std::string_view bytes);
bool from_byte_alphabet(std::string_view text, std::string& bytes);

}  // namespace octet
