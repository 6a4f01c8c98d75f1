#include "tools/data/token_shard.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/base/error.h"

namespace octet {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are read and written as they stand in memory");

constexpr char kMagic[8] = {'O', 'C', 'T', 'E', 'T', 'T', 'O', 'K'};
constexpr uint32_t kVersion = 1;
constexpr uint64_t kHeaderBytes = 256, kDigestOffset = kHeaderBytes - 16;
constexpr uint64_t kBlockBytes = 1 << 20;
constexpr uint64_t kMaxTokens = uint64_t(1) << 40;  // so that no product below can wrap
constexpr int64_t kMaxVocab = INT32_MAX;

struct Header {
  char magic[8];
  uint32_t version, bytes_per_token;
  uint64_t num_tokens, num_documents, vocab_size, block_bytes;
  Digest tokenizer, index_digest;
};
static_assert(sizeof(Header) == 80 && sizeof(Header) <= kDigestOffset);

uint64_t bytes_per_token_for(int64_t vocab_size) { return vocab_size <= 65536 ? 2 : 4; }
uint64_t rounded_up(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }
uint64_t num_blocks(uint64_t token_bytes) { return (token_bytes + kBlockBytes - 1) / kBlockBytes; }

constexpr const char* kPrepareAgain = "copy the file again from where it is whole, or repeat octet prepare";

[[noreturn]] void damaged(const std::string& path, uint64_t offset, std::string what) {
  fail(ErrorKind::kData, {.what = std::move(what),
                          .where = fmt::format("{}, byte {}", path, offset),
                          .why = "training on damaged tokens would spoil the model without a sign",
                          .fix = kPrepareAgain});
}

}  // namespace

ShardBuilder::ShardBuilder(int64_t vocab_size, const Digest& tokenizer)
    : vocab_size_(vocab_size), tokenizer_(tokenizer), bytes_per_token_(bytes_per_token_for(vocab_size)) {
  require(vocab_size >= 1 && vocab_size <= kMaxVocab, "token shard: vocab size is {}; wanted 1 to {}", vocab_size,
          kMaxVocab);
}

void ShardBuilder::add_document(std::span<const int32_t> tokens) {
  if (tokens.empty()) return;
  starts_.push_back(num_tokens());
  const size_t at = tokens_.size();
  tokens_.resize(at + tokens.size() * bytes_per_token_);
  uint8_t* to = tokens_.data() + at;
  for (const int32_t token : tokens) {
    require(token >= 0 && token < vocab_size_, "token shard: token {}; wanted 0 to {}", token, vocab_size_ - 1);
    std::memcpy(to, &token, bytes_per_token_);  // the low bytes come first
    to += bytes_per_token_;
  }
}

ShardInfo ShardBuilder::write(FileSystem& files, const std::string& path) {
  require(!starts_.empty(), "token shard {}: there are no documents to write", path);
  std::vector<uint8_t> index(starts_.size() * 8);
  std::memcpy(index.data(), starts_.data(), index.size());
  for (uint64_t at = 0; at < tokens_.size(); at += kBlockBytes) {
    const Digest digest = digest_of(tokens_.data() + at, std::min<uint64_t>(kBlockBytes, tokens_.size() - at));
    index.insert(index.end(), digest.begin(), digest.end());
  }
  Header header{.magic = {},
                .version = kVersion,
                .bytes_per_token = uint32_t(bytes_per_token_),
                .num_tokens = num_tokens(),
                .num_documents = starts_.size(),
                .vocab_size = uint64_t(vocab_size_),
                .block_bytes = kBlockBytes,
                .tokenizer = tokenizer_,
                .index_digest = digest_of(index.data(), index.size())};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  std::array<uint8_t, kHeaderBytes> head{};
  std::memcpy(head.data(), &header, sizeof header);
  const Digest header_digest = digest_of(head.data(), kDigestOffset);
  std::copy(header_digest.begin(), header_digest.end(), head.begin() + kDigestOffset);
  tokens_.resize(rounded_up(tokens_.size(), 8));

  const std::string temporary = path + ".tmp";
  if (files.exists(temporary)) files.remove_file(temporary);
  {
    const auto file = files.create(temporary);
    file->append(head.data(), head.size());
    file->append(tokens_.data(), tokens_.size());
    file->append(index.data(), index.size());
    file->sync();
  }
  files.rename(temporary, path);
  const ShardInfo info{.num_tokens = header.num_tokens,
                       .num_documents = header.num_documents,
                       .file_bytes = kHeaderBytes + tokens_.size() + index.size(),
                       .header_digest = header_digest};
  tokens_.clear();
  starts_.clear();
  return info;
}

ShardReader::ShardReader(FileSystem& files, const std::string& path) : path_(path), file_(files.open(path)) {
  const uint64_t size = file_->size();
  if (size < kHeaderBytes) {
    damaged(path_, size, fmt::format("a token shard of {} bytes; its header alone has {}", size, kHeaderBytes));
  }
  std::array<uint8_t, kHeaderBytes> head;
  file_->read_at(0, head.data(), head.size());
  Header header;
  std::memcpy(&header, head.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) {
    damaged(path_, 0, "this is not a token shard: the magic \"OCTETTOK\" is missing");
  }
  if (header.version != kVersion) {
    fail(ErrorKind::kData,
         {.what = fmt::format("token shard format {}; this program reads format {}", header.version, kVersion),
          .where = path_ + ", byte 8",
          .why = {},
          .fix = "repeat octet prepare with this program"});
  }
  const Digest digest = digest_of(head.data(), kDigestOffset);
  if (!std::equal(digest.begin(), digest.end(), head.begin() + kDigestOffset)) {
    damaged(path_, kDigestOffset, "the token shard's header does not have its digest");
  }
  // The digest shows accidents; the values are checked as if from a stranger all the same.
  const uint64_t vocab = header.vocab_size, tokens = header.num_tokens, documents = header.num_documents;
  if (vocab < 1 || vocab > uint64_t(kMaxVocab)) damaged(path_, 32, fmt::format("vocab size {}", vocab));
  if (header.bytes_per_token != bytes_per_token_for(int64_t(vocab))) {
    damaged(path_, 12,
            fmt::format("{} bytes per token for a vocabulary of {}; wanted {}", header.bytes_per_token, vocab,
                        bytes_per_token_for(int64_t(vocab))));
  }
  if (tokens < 1 || tokens > kMaxTokens) damaged(path_, 16, fmt::format("{} tokens; wanted at least 1", tokens));
  if (documents < 1 || documents > tokens) {
    damaged(path_, 24, fmt::format("{} documents in {} tokens; wanted 1 to {}", documents, tokens, tokens));
  }
  if (header.block_bytes != kBlockBytes) {
    damaged(path_, 40, fmt::format("blocks of {} bytes; wanted {}", header.block_bytes, kBlockBytes));
  }
  bytes_per_token_ = header.bytes_per_token;
  const uint64_t token_bytes = tokens * bytes_per_token_, padded = rounded_up(token_bytes, 8);
  const uint64_t blocks = num_blocks(token_bytes), index_bytes = documents * 8 + blocks * 16;
  const uint64_t wanted = kHeaderBytes + padded + index_bytes;
  if (size != wanted) {
    damaged(path_, std::min(size, wanted),
            fmt::format("the token shard has {} bytes; wanted {} for {} tokens in {} documents", size, wanted, tokens,
                        documents));
  }
  std::vector<uint8_t> index(index_bytes);
  file_->read_at(kHeaderBytes + padded, index.data(), index.size());
  if (digest_of(index.data(), index.size()) != header.index_digest) {
    damaged(path_, kHeaderBytes + padded, "the token shard's index does not have its digest");
  }
  uint64_t padding = 0;
  file_->read_at(kHeaderBytes + token_bytes, &padding, padded - token_bytes);
  if (padding != 0) damaged(path_, kHeaderBytes + token_bytes, "the padding after the tokens is not zero");
  starts_.resize(documents);
  std::memcpy(starts_.data(), index.data(), documents * 8);
  for (uint64_t i = 0; i < documents; ++i) {
    const bool is_rising = i == 0 ? starts_[0] == 0 : starts_[i] > starts_[i - 1];
    if (!is_rising || starts_[i] >= tokens) {
      damaged(
          path_, kHeaderBytes + padded + i * 8,
          fmt::format("document {} starts at token {}; wanted rising starts from 0 below {}", i, starts_[i], tokens));
    }
  }
  block_digests_.resize(blocks);
  std::memcpy(block_digests_.data(), index.data() + documents * 8, blocks * 16);
  num_tokens_ = int64_t(tokens);
  vocab_size_ = int64_t(vocab);
  tokenizer_ = header.tokenizer;
  info_ = {.num_tokens = tokens, .num_documents = documents, .file_bytes = size, .header_digest = digest};
  is_checked_ = std::make_unique<std::atomic<bool>[]>(blocks);  // all false
}

void ShardReader::check_block(uint64_t block) const {
  const uint64_t token_bytes = uint64_t(num_tokens_) * bytes_per_token_;
  const uint64_t begin = block * kBlockBytes, bytes = std::min(kBlockBytes, token_bytes - begin);
  std::vector<uint8_t> content(bytes);
  file_->read_at(kHeaderBytes + begin, content.data(), bytes);
  if (digest_of(content.data(), bytes) != block_digests_[block]) {
    damaged(path_, kHeaderBytes + begin,
            fmt::format("block {} of the token shard ({} bytes) does not have its digest", block, bytes));
  }
  for (uint64_t at = 0; at < bytes; at += bytes_per_token_) {
    uint32_t token = 0;
    std::memcpy(&token, content.data() + at, bytes_per_token_);
    if (token >= uint64_t(vocab_size_)) {
      damaged(path_, kHeaderBytes + begin + at, fmt::format("token {}; wanted 0 to {}", token, vocab_size_ - 1));
    }
  }
  is_checked_[block].store(true, std::memory_order_release);
}

void ShardReader::verify() const {
  for (uint64_t block = 0; block < block_digests_.size(); ++block) check_block(block);
}

void ShardReader::read(int64_t first, int64_t count, int32_t* to) const {
  require(first >= 0 && count >= 0 && first <= num_tokens_ && count <= num_tokens_ - first,
          "token shard: {} tokens from token {}; {} has {}", count, first, path_, num_tokens_);
  if (count == 0) return;
  const uint64_t begin = uint64_t(first) * bytes_per_token_, bytes = uint64_t(count) * bytes_per_token_;
  for (uint64_t block = begin / kBlockBytes; block <= (begin + bytes - 1) / kBlockBytes; ++block) {
    if (!is_checked_[block].load(std::memory_order_acquire)) check_block(block);
  }
  if (bytes_per_token_ == 4) {
    file_->read_at(kHeaderBytes + begin, to, bytes);
    return;
  }
  std::vector<uint16_t> narrow(static_cast<size_t>(count));
  file_->read_at(kHeaderBytes + begin, narrow.data(), bytes);
  std::copy(narrow.begin(), narrow.end(), to);
}

}  // namespace octet
