// Token shards: one file with the tokens of many documents, one after the other, that is read at random places.
//
//   bytes 0..255            header, little-endian:
//     0  char[8] magic "OCTETTOK"          8  u32 format version, 1        12  u32 bytes per token, 2 or 4
//    16  u64 tokens                       24  u64 documents                32  u64 vocab size
//    40  u64 block bytes, 1 MiB           48  u8[16] digest of the tokenizer
//    64  u8[16] XXH3-128 of the index     80  zeros                       240  u8[16] XXH3-128 of bytes 0..239
//   tokens                  u16 where the vocabulary has at most 65536 tokens, else u32
//   index                   u64 per document: its first token, rising from 0; then u8[16] per block of the tokens:
//                           XXH3-128 of the block. Padding of zeros before the index makes it start at a multiple of 8.
//   and nothing after it.
//
// Opening checks the header, the exact file size, the index's digest and the document starts: every byte but the
// tokens. A block of tokens is checked when it is first touched: its digest, and that every token is below the vocab
// size. So opening a terabyte of shards takes milliseconds, and no token that was not checked is ever handed out.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/file_system.h"
#include "tools/data/digest.h"

namespace octet {

struct ShardInfo {
  uint64_t num_tokens = 0, num_documents = 0, file_bytes = 0;
  Digest header_digest{};  // covers, through the index, every byte of the file
};

// Collects the documents of one shard in memory and writes it.
class ShardBuilder {
 public:
  ShardBuilder(int64_t vocab_size, const Digest& tokenizer);
  // A token outside the vocabulary is an argument error. A document without tokens is not kept.
  void add_document(std::span<const int32_t> tokens);
  uint64_t num_tokens() const { return tokens_.size() / bytes_per_token_; }
  // Writes the shard beside `path`, syncs it and renames it, and starts an empty one; the caller syncs the directory.
  // An empty shard is an argument error: readers refuse one.
  ShardInfo write(FileSystem& files, const std::string& path);

 private:
  int64_t vocab_size_;
  Digest tokenizer_;
  uint64_t bytes_per_token_;
  std::vector<uint8_t> tokens_;  // as they stand in the file
  std::vector<uint64_t> starts_;
};

class ShardReader {
 public:
  // Throws kData with the path and the byte offset for a file that is not a whole, undamaged shard.
  ShardReader(FileSystem& files, const std::string& path);
  const std::string& path() const { return path_; }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_documents() const { return int64_t(starts_.size()); }
  int64_t vocab_size() const { return vocab_size_; }
  const Digest& tokenizer_digest() const { return tokenizer_; }
  const ShardInfo& info() const { return info_; }
  std::span<const uint64_t> document_starts() const { return starts_; }

  // Tokens [first, first + count), which must lie in the shard. Any thread. Throws kData where a block is damaged.
  void read(int64_t first, int64_t count, int32_t* to) const;
  // Checks every block now.
  void verify() const;

 private:
  void check_block(uint64_t block) const;  // reads it and throws where it is damaged

  std::string path_;
  std::unique_ptr<ReadableFile> file_;
  ShardInfo info_;
  int64_t num_tokens_ = 0, vocab_size_ = 0;
  uint64_t bytes_per_token_ = 2;
  Digest tokenizer_{};
  std::vector<uint64_t> starts_;
  std::vector<Digest> block_digests_;
  mutable std::unique_ptr<std::atomic<bool>[]> is_checked_;
};

}  // namespace octet
