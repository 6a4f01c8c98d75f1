#include "tools/data/dataset.h"

#include <algorithm>
#include <numbers>

#include "core/base/error.h"
#include "core/io/json.h"

namespace octet {
namespace {

constexpr std::string_view kFormat = "octet-dataset";
constexpr int64_t kVersion = 1;
constexpr int64_t kMaxTokens = int64_t(1) << 50;
constexpr JsonLimits kLimits{.bytes = 16 << 20, .depth = 8, .values = 1 << 20};

Json shard_json(const ShardEntry& shard) {
  Json json;
  json.set("file", shard.file);
  json.set("bytes", shard.info.file_bytes);
  json.set("tokens", shard.info.num_tokens);
  json.set("documents", shard.info.num_documents);
  json.set("digest", hex_digest(shard.info.header_digest));
  return json;
}

Json split_json(const SplitInfo& split) {
  Json json;
  json.set("tokens", split.num_tokens);
  json.set("documents", split.num_documents);
  json.set("text_bytes", split.text_bytes);
  json.set("unigram_nats_per_token", split.unigram_nats_per_token);
  Json shards = Json::array();
  for (const ShardEntry& shard : split.shards) shards.push_back(shard_json(shard));
  json.set("shards", std::move(shards));
  return json;
}

Digest read_digest(const JsonCursor& cursor) {
  Digest digest{};
  if (!parse_digest(cursor.as_string(), digest)) {
    cursor.refuse("is no digest; wanted 32 lower-case hexadecimal digits");
  }
  return digest;
}

SplitInfo read_split(const JsonCursor& cursor) {
  cursor.allow_keys({"tokens", "documents", "text_bytes", "unigram_nats_per_token", "shards"});
  SplitInfo split;
  split.num_tokens = cursor["tokens"].as_int64(0, kMaxTokens);
  split.num_documents = cursor["documents"].as_int64(0, split.num_tokens);
  split.text_bytes = cursor["text_bytes"].as_int64(0, kMaxTokens);
  split.unigram_nats_per_token = cursor["unigram_nats_per_token"].as_double();
  const JsonCursor shards = cursor["shards"];
  int64_t tokens = 0, documents = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const JsonCursor entry = shards.at(i);
    entry.allow_keys({"file", "bytes", "tokens", "documents", "digest"});
    ShardEntry shard;
    shard.file = entry["file"].as_string();
    // One plain component: a dataset never reaches outside its directory.
    const bool is_plain = !shard.file.empty() && shard.file[0] != '.' && shard.file.size() <= 255 &&
                          shard.file.find('/') == std::string::npos && shard.file.find('\0') == std::string::npos;
    if (!is_plain) entry["file"].refuse("is no file name; wanted one that lies in the directory itself");
    shard.info.file_bytes = entry["bytes"].as_uint64();
    shard.info.num_tokens = uint64_t(entry["tokens"].as_int64(1, kMaxTokens));
    shard.info.num_documents = uint64_t(entry["documents"].as_int64(1, kMaxTokens));
    shard.info.header_digest = read_digest(entry["digest"]);
    for (const ShardEntry& other : split.shards) {
      if (other.file == shard.file) entry["file"].refuse(fmt::format("is \"{}\" for the second time", shard.file));
    }
    tokens += int64_t(shard.info.num_tokens);
    documents += int64_t(shard.info.num_documents);
    if (tokens > kMaxTokens) entry["tokens"].refuse("makes the split larger than any disk");
    split.shards.push_back(std::move(shard));
  }
  if (tokens != split.num_tokens || documents != split.num_documents) {
    cursor.refuse(fmt::format("says {} tokens in {} documents, its shards {} in {}", split.num_tokens,
                              split.num_documents, tokens, documents));
  }
  return split;
}

}  // namespace

std::string_view name_of(Split split) { return split == Split::kTrain ? "train" : "val"; }

double SplitInfo::bits_per_byte(double nats_per_token) const {
  return nats_per_token / std::numbers::ln2 / bytes_per_token();
}

std::string to_dataset_json(const DatasetInfo& info) {
  Json tokenizer, splits, json;
  tokenizer.set("digest", hex_digest(info.tokenizer_digest));
  tokenizer.set("vocab_size", info.vocab_size);
  tokenizer.set("eos_id", int64_t(info.eos_id));
  splits.set("train", split_json(info.train));
  splits.set("val", split_json(info.val));
  json.set("format", kFormat);
  json.set("version", kVersion);
  json.set("tokenizer", std::move(tokenizer));
  json.set("seed", info.seed);
  json.set("splits", std::move(splits));
  return json.text(/*line_depth=*/5) + "\n";
}

DatasetInfo read_dataset_info(FileSystem& files, const std::string& directory) {
  const std::string path = join_path(directory, "dataset.json");
  if (!files.exists(path)) {
    fail(ErrorKind::kData, {.what = fmt::format("{} is not a dataset: it has no dataset.json", directory),
                            .where = {},
                            .why = {},
                            .fix = fmt::format("octet prepare --input FILE... --output {}", directory)});
  }
  const std::string text = files.read_text(path, kLimits.bytes);
  const JsonSource source{.kind = ErrorKind::kData, .file = path};
  const Json json = parse_json(text, source, kLimits);
  const JsonCursor top(json, source);
  if (top["format"].as_string() != kFormat) top["format"].refuse(fmt::format("is not \"{}\"", kFormat));
  top["version"].as_int64(kVersion, kVersion);
  top.allow_keys({"format", "version", "tokenizer", "seed", "splits"});
  DatasetInfo info;
  const JsonCursor tokenizer = top["tokenizer"], splits = top["splits"];
  tokenizer.allow_keys({"digest", "vocab_size", "eos_id"});
  info.tokenizer_digest = read_digest(tokenizer["digest"]);
  info.vocab_size = tokenizer["vocab_size"].as_int64(1, INT32_MAX);
  info.eos_id = int32_t(tokenizer["eos_id"].as_int64(0, info.vocab_size - 1));
  info.seed = top["seed"].as_int64(0);
  splits.allow_keys({"train", "val"});
  info.train = read_split(splits["train"]);
  info.val = read_split(splits["val"]);
  info.digest = hex_digest(digest_of(text));
  return info;
}

Tokenizer load_dataset_tokenizer(FileSystem& files, const std::string& directory) {
  const DatasetInfo info = read_dataset_info(files, directory);
  const std::string path = join_path(directory, "tokenizer.json");
  Tokenizer tokenizer = Tokenizer::load(files, path);
  if (tokenizer.digest() != hex_digest(info.tokenizer_digest)) {
    fail(ErrorKind::kData, {.what = fmt::format("{} is not the tokenizer this dataset was made with", path),
                            .where = {},
                            .why = "its tokens would stand for other text",
                            .fix = "put the tokenizer.json of the dataset back, or repeat octet prepare"});
  }
  return tokenizer;
}

TokenDataset::TokenDataset(FileSystem& files, const std::string& directory, Split split) {
  DatasetInfo dataset = read_dataset_info(files, directory);
  vocab_size_ = dataset.vocab_size;
  digest_ = dataset.digest;
  info_ = std::move(split == Split::kTrain ? dataset.train : dataset.val);
  if (info_.shards.empty()) {
    fail(ErrorKind::kData, {.what = fmt::format("{}: the {} split is empty", directory, name_of(split)),
                            .where = {},
                            .why = {},
                            .fix = "repeat octet prepare with more documents, or with another --val-fraction"});
  }
  begin_.push_back(0);
  for (const ShardEntry& shard : info_.shards) {
    shards_.push_back(std::make_unique<ShardReader>(files, join_path(directory, shard.file)));
    const ShardReader& reader = *shards_.back();
    const bool is_same =
        reader.info().header_digest == shard.info.header_digest && reader.info().file_bytes == shard.info.file_bytes &&
        reader.info().num_tokens == shard.info.num_tokens && reader.info().num_documents == shard.info.num_documents &&
        reader.vocab_size() == vocab_size_ && reader.tokenizer_digest() == dataset.tokenizer_digest;
    if (!is_same) {
      fail(ErrorKind::kData,
           {.what = fmt::format("{} is a whole token shard, but not the one of this dataset", reader.path()),
            .where = fmt::format("digest {}; dataset.json has {}", hex_digest(reader.info().header_digest),
                                 hex_digest(shard.info.header_digest)),
            .why = "the file was changed or exchanged since the dataset was prepared",
            .fix = "put the file of this dataset back, or repeat octet prepare"});
    }
    begin_.push_back(begin_.back() + reader.num_tokens());
  }
}

void TokenDataset::read(int64_t first, int64_t count, int32_t* to) const {
  require(first >= 0 && count >= 0 && first <= num_tokens() && count <= num_tokens() - first,
          "token dataset: {} tokens from token {}; there are {}", count, first, num_tokens());
  size_t shard = size_t(std::upper_bound(begin_.begin(), begin_.end(), first) - begin_.begin()) - 1;
  while (count > 0) {
    const int64_t here = std::min(count, begin_[shard + 1] - first);
    shards_[shard]->read(first - begin_[shard], here, to);
    first += here, count -= here, to += here;
    ++shard;
  }
}

void TokenDataset::verify() const {
  for (const auto& shard : shards_) shard->verify();
}

Batch DataLoader::fetch(int64_t first_sample, int64_t count) const {
  require(count >= 0, "data loader: {} samples; wanted at least 0", count);
  const int64_t seq_len = order_.seq_len();
  Batch batch{.num_samples = count, .seq_len = seq_len, .inputs = {}, .targets = {}};
  batch.inputs.reserve(size_t(count * seq_len));
  batch.targets.reserve(size_t(count * seq_len));
  std::vector<int32_t> window(size_t(seq_len + 1));
  for (int64_t s = 0; s < count; ++s) {
    dataset_->read(order_.first_token(first_sample + s), seq_len + 1, window.data());
    batch.inputs.insert(batch.inputs.end(), window.begin(), window.end() - 1);
    batch.targets.insert(batch.targets.end(), window.begin() + 1, window.end());
  }
  return batch;
}

}  // namespace octet
