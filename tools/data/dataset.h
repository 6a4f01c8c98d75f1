// A dataset: the directory that `octet prepare` writes and training reads.
//   dataset.json    what is in it, below
//   tokenizer.json  the tokenizer, in the format of the Hugging Face library
//   train-00000.tok ...  val-00000.tok ...   token shards, see tools/data/token_shard.h
//
// dataset.json: {"format": "octet-dataset", "version": 1, "tokenizer": {"digest", "vocab_size", "eos_id"}, "seed",
// "splits": {"train": S, "val": S}}, where S is {"tokens", "documents", "text_bytes", "unigram_nats_per_token",
// "shards": [{"file", "bytes", "tokens", "documents", "digest"}]}. A shard's digest is that of its header, which covers
// the whole file. Every document ends with the end-of-text token, which has no bytes in text_bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/file_system.h"
#include "tools/data/sample_order.h"
#include "tools/data/token_shard.h"
#include "tools/data/tokenizer.h"

namespace octet {

struct ShardEntry {
  std::string file;  // its name in the directory
  ShardInfo info;
};

struct SplitInfo {
  int64_t num_tokens = 0, num_documents = 0;
  int64_t text_bytes = 0;
  // Entropy of the split's own token frequencies, -sum p log p: what a model reaches that knows them and nothing else.
  double unigram_nats_per_token = 0;
  std::vector<ShardEntry> shards;

  double bytes_per_token() const { return double(text_bytes) / double(num_tokens); }
  // The loss in bits per byte of text, which compares models whatever their tokenizer.
  double bits_per_byte(double nats_per_token) const;
};

struct DatasetInfo {
  Digest tokenizer_digest{};
  int64_t vocab_size = 0;
  int32_t eos_id = -1;
  int64_t seed = 0;
  SplitInfo train, val;  // val may be empty
  // Of dataset.json itself, which holds the digests of everything else: two datasets with one digest are the same.
  std::string digest;
};

std::string to_dataset_json(const DatasetInfo& info);
// Throws kData with file and key where dataset.json is not one.
DatasetInfo read_dataset_info(FileSystem& files, const std::string& directory);
// The dataset's tokenizer; throws kData where it is not the one the tokens were made with.
Tokenizer load_dataset_tokenizer(FileSystem& files, const std::string& directory);

enum class Split { kTrain, kVal };
std::string_view name_of(Split split);

// The tokens of one split as one stream. Opening checks all but the tokens themselves: names, sizes, digests of the
// headers, tokenizer; a block of tokens is checked when it is first read. Any thread may read.
class TokenDataset {
 public:
  TokenDataset(FileSystem& files, const std::string& directory, Split split);

  const SplitInfo& info() const { return info_; }
  int64_t num_tokens() const { return info_.num_tokens; }
  int64_t vocab_size() const { return vocab_size_; }
  const std::string& digest() const { return digest_; }  // of the whole dataset, both splits
  // Tokens [first, first + count) of the stream.
  void read(int64_t first, int64_t count, int32_t* to) const;
  // Reads and checks every token.
  void verify() const;

 private:
  SplitInfo info_;
  int64_t vocab_size_;
  std::string digest_;
  std::vector<std::unique_ptr<ShardReader>> shards_;
  std::vector<int64_t> begin_;  // [shards + 1], each shard's first token in the stream
};

// Samples, one after the other: sample s of a batch is row s.
struct Batch {
  int64_t num_samples = 0, seq_len = 0;
  std::vector<int32_t> inputs;   // [num_samples, seq_len]
  std::vector<int32_t> targets;  // [num_samples, seq_len]; the token after each input
};

// Reads samples by their number alone; holds no position. Refers to the dataset.
class DataLoader {
 public:
  DataLoader(const TokenDataset& dataset, SampleOrder order) : dataset_(&dataset), order_(order) {}
  const SampleOrder& order() const { return order_; }
  // Samples [first_sample, first_sample + count), counted over all epochs.
  Batch fetch(int64_t first_sample, int64_t count) const;

 private:
  const TokenDataset* dataset_;
  SampleOrder order_;
};

}  // namespace octet
