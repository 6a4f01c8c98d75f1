#include "tools/data/prepare.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <mutex>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "tools/data/bpe_trainer.h"
#include "tools/data/utf8.h"

namespace octet {
namespace {

constexpr uint64_t kBatchBytes = 16 << 20;
constexpr double kMaxValFraction = 0.5;

uint64_t hash_of(std::string_view text) { return XXH3_64bits(text.data(), text.size()); }

// Uniform on [0, 1) by 53 bits, so that even among 10^9 documents hardly two are equal.
double uniform_of(const RandomStream& stream, uint64_t hash) { return double(stream.bits(hash) >> 11) * 0x1p-53; }

// Which documents are for validation. The first pass shows it all documents, in order; then it knows.
class SplitRule {
 public:
  SplitRule(double fraction, uint64_t seed) : fraction_(fraction), stream_(seed, "data/split") {}

  void see(uint64_t hash) {
    const double u = uniform_of(stream_, hash);
    if (count_ == 0 || u < smallest_) smallest_ = u, smallest_at_ = count_;
    if (count_ == 0 || u > largest_) largest_ = u, largest_at_ = count_;
    ++count_;
    order_hash_ = XXH3_64bits_withSeed(&hash, sizeof hash, order_hash_);
  }
  bool is_val(int64_t document, uint64_t hash) const {
    if (fraction_ == 0 || count_ < 2) return false;
    if (smallest_ >= fraction_) return document == smallest_at_;        // none would be
    if (largest_ < fraction_ && document == largest_at_) return false;  // all would be
    return uniform_of(stream_, hash) < fraction_;
  }
  // True where the only document has to be cut.
  bool cuts() const { return count_ == 1 && fraction_ > 0; }
  int64_t count() const { return count_; }
  uint64_t order_hash() const { return order_hash_; }  // of all documents in their order

 private:
  double fraction_;
  RandomStream stream_;
  int64_t count_ = 0, smallest_at_ = 0, largest_at_ = 0;
  double smallest_ = 0, largest_ = 0;
  uint64_t order_hash_ = 0;
};

// Where to cut an only document so that about `fraction` of it comes after: behind a line end if there is one, else
// before a character. 0 or the size where it cannot be cut.
size_t cut_of(std::string_view text, double fraction) {
  const auto wanted = size_t(double(text.size()) * (1 - fraction));
  const size_t after = text.find('\n', wanted);
  if (after != std::string_view::npos && after + 1 < text.size()) return after + 1;
  const size_t before = text.rfind('\n', wanted);
  if (before != std::string_view::npos) return before + 1;
  size_t at = wanted;
  while (at > 0 && (uint8_t(text[at]) & 0xc0) == 0x80) --at;
  return at;
}

// Encoders are not for several threads at once, and remember words: each thread takes one that is free.
class EncoderPool {
 public:
  explicit EncoderPool(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  template <class Use>
  void with(Use&& use) {
    std::unique_ptr<Encoder> encoder;
    {
      const std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        encoder = std::move(free_.back());
        free_.pop_back();
      }
    }
    if (!encoder) encoder = std::make_unique<Encoder>(tokenizer_);
    use(*encoder);
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(encoder));
  }

 private:
  const Tokenizer& tokenizer_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Encoder>> free_;
};

// Collects one split and writes its shards.
class SplitWriter {
 public:
  SplitWriter(FileSystem& files, std::string directory, Split split, const Tokenizer& tokenizer, Digest digest,
              uint64_t shard_tokens)
      : files_(files),
        directory_(std::move(directory)),
        split_(split),
        shard_tokens_(shard_tokens),
        builder_(tokenizer.vocab_size(), digest),
        frequency_(size_t(tokenizer.vocab_size()), 0) {}

  void add(std::span<const int32_t> tokens, uint64_t text_bytes) {
    builder_.add_document(tokens);
    for (const int32_t token : tokens) ++frequency_[size_t(token)];
    info_.num_tokens += int64_t(tokens.size());
    info_.num_documents += 1;
    info_.text_bytes += int64_t(text_bytes);
    if (builder_.num_tokens() >= shard_tokens_) write();
  }
  SplitInfo finish() {
    if (builder_.num_tokens() > 0) write();
    for (const int64_t count : frequency_) {
      if (count == 0) continue;
      const double p = double(count) / double(info_.num_tokens);
      info_.unigram_nats_per_token -= p * std::log(p);
    }
    return std::move(info_);
  }

 private:
  void write() {
    const std::string name = fmt::format("{}-{:05}.tok", name_of(split_), info_.shards.size());
    info_.shards.push_back({.file = name, .info = builder_.write(files_, join_path(directory_, name))});
  }

  FileSystem& files_;
  std::string directory_;
  Split split_;
  uint64_t shard_tokens_;
  ShardBuilder builder_;
  std::vector<int64_t> frequency_;
  SplitInfo info_;
};

Tokenizer tokenizer_with_eos(FileSystem& files, const PrepareOptions& options) {
  Tokenizer tokenizer = Tokenizer::load(files, options.tokenizer_path);
  if (!options.eos_token.empty()) {
    require(ErrorKind::kData, tokenizer.added_token_id(options.eos_token) >= 0,
            "{} has no special token \"{}\" to end documents with", options.tokenizer_path, options.eos_token);
  } else if (tokenizer.eos_id() < 0) {
    std::string names;
    for (const AddedToken& token : tokenizer.added_tokens()) {
      if (names.size() < 200) names += (names.empty() ? "" : " ") + token.content;
    }
    fail(ErrorKind::kData,
         {.what = fmt::format("{} has no token that is known to end a document", options.tokenizer_path),
          .where = names.empty() ? "it has no special tokens" : "its special tokens: " + names,
          .why = "a model could not tell where one document ends and the next begins",
          .fix = "name one with --eos-token"});
  }
  return tokenizer;
}

std::string without_end_slashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

// The second pass: writes the whole dataset into an empty directory.
PrepareSummary write_dataset(const PrepareOptions& options, const Tokenizer& tokenizer, const SplitRule& rule,
                             DocumentSource& source, const std::string& directory, FileSystem& files, Clock& clock,
                             ThreadPool& pool, const std::function<void(const char*, double)>& report) {
  PrepareSummary summary;
  DatasetInfo& info = summary.dataset;
  info.tokenizer_digest = digest_of(tokenizer.json());
  info.vocab_size = tokenizer.vocab_size();
  info.eos_id = options.eos_token.empty() ? tokenizer.eos_id() : tokenizer.added_token_id(options.eos_token);
  info.seed = int64_t(options.seed);
  SplitWriter train(files, directory, Split::kTrain, tokenizer, info.tokenizer_digest, options.shard_tokens);
  SplitWriter val(files, directory, Split::kVal, tokenizer, info.tokenizer_digest, options.shard_tokens);

  source.rewind();
  EncoderPool encoders(tokenizer);
  SplitRule again(options.val_fraction, options.seed);
  int64_t document = 0;
  while (true) {
    std::vector<std::string> batch = source.next_batch(kBatchBytes);
    if (batch.empty()) break;
    std::vector<bool> is_val;
    for (const std::string& text : batch) {
      const uint64_t hash = hash_of(text);
      again.see(hash);
      is_val.push_back(rule.is_val(document++, hash));
    }
    if (rule.cuts() && document == 1) {
      const size_t cut = cut_of(batch[0], options.val_fraction);
      if (cut > 0 && cut < batch[0].size()) {
        batch.push_back(batch[0].substr(cut));
        batch[0].resize(cut);
        is_val.push_back(true);
      }
    }
    std::vector<std::vector<int32_t>> tokens(batch.size());
    const double encode_start = clock.seconds();
    pool.for_chunks(int64_t(batch.size()), 1, [&](int64_t begin, int64_t) {
      encoders.with([&](Encoder& encoder) { encoder.encode(batch[size_t(begin)], tokens[size_t(begin)]); });
      tokens[size_t(begin)].push_back(info.eos_id);
    });
    summary.encode_seconds += clock.seconds() - encode_start;
    for (size_t i = 0; i < batch.size(); ++i) (is_val[i] ? val : train).add(tokens[i], batch[i].size());
    report("tokenizing", double(source.bytes_read()) / double(std::max<uint64_t>(1, source.total_bytes())));
  }
  if (again.count() != rule.count() || again.order_hash() != rule.order_hash()) {
    fail(ErrorKind::kData, {.what = "the input files changed while they were read",
                            .where = {},
                            .why = "the tokens would not be those of any one state of the files",
                            .fix = "repeat the command when nothing writes to them"});
  }
  info.train = train.finish();
  info.val = val.finish();
  tokenizer.save(files, join_path(directory, "tokenizer.json"));
  const std::string json = to_dataset_json(info);
  info.digest = hex_digest(digest_of(json));
  files.write_atomically(join_path(directory, "dataset.json"), json);
  files.sync_directory(directory);
  summary.counts = source.counts();
  return summary;
}

}  // namespace

void PrepareOptions::validate() const {
  require(!output.empty(), "prepare: the output is empty; wanted a directory");
  require(val_fraction >= 0 && val_fraction <= kMaxValFraction,
          "prepare: the validation fraction is {}; wanted 0 to {}", val_fraction, kMaxValFraction);
  require(!tokenizer_path.empty() || (vocab_size >= kMinVocabSize && vocab_size <= kMaxVocabSize),
          "prepare: the vocabulary size is {}; wanted {} to {}", vocab_size, kMinVocabSize, kMaxVocabSize);
  require(shard_tokens >= 1 && train_bytes >= 1,
          "prepare: shards of {} tokens, {} bytes to train on; wanted at least 1", shard_tokens, train_bytes);
}

PrepareSummary prepare_dataset(const PrepareOptions& options, FileSystem& files, Clock& clock, ThreadPool& pool,
                               const std::function<void(const PrepareProgress&)>& progress) {
  options.validate();
  const double start = clock.seconds();
  const auto report = [&](const char* stage, double done) {
    if (progress) progress({.stage = stage, .done = std::min(done, 1.0)});
  };
  const std::string output = without_end_slashes(options.output);
  const bool is_there = files.exists(output);
  if (is_there) {
    const bool is_empty = files.info(output).is_directory && files.list(output).empty();
    const bool is_dataset = files.exists(join_path(output, "dataset.json"));
    if (!is_empty && !(is_dataset && options.overwrite)) {
      fail(ErrorKind::kArgument,
           {.what = fmt::format("the output {} is there already", output),
            .where = {},
            .why = is_dataset ? "a run that reads it would find other data under the same name"
                              : "it is not a dataset, and would be lost",
            .fix = is_dataset ? "choose another output, or replace it with --overwrite" : "choose another output"});
    }
  }
  // What can be refused is refused before anything is read.
  const bool trains = options.tokenizer_path.empty();
  std::unique_ptr<Tokenizer> tokenizer;
  if (!trains) tokenizer = std::make_unique<Tokenizer>(tokenizer_with_eos(files, options));
  DocumentSource source(files, options.source);
  const double total_bytes = std::max<double>(1, double(source.total_bytes()));

  SplitRule rule(options.val_fraction, options.seed);
  {
    WordCounter words;
    const RandomStream sampling(options.seed, "data/tokenizer_sample");
    const double keep = double(options.train_bytes) / total_bytes;
    while (true) {
      std::vector<std::string> batch = source.next_batch(kBatchBytes);
      if (batch.empty()) break;
      std::vector<std::string> sample;
      for (std::string& text : batch) {
        const uint64_t hash = hash_of(text);
        rule.see(hash);
        if (trains && (keep >= 1 || uniform_of(sampling, hash) < keep)) sample.push_back(std::move(text));
      }
      words.add(sample, pool);
      report("reading", double(source.bytes_read()) / total_bytes);
    }
    if (rule.count() == 0) {
      fail(ErrorKind::kData, {.what = fmt::format("there is no text in the {} input files", source.paths().size()),
                              .where = source.paths().front(),
                              .why = {},
                              .fix = "check the inputs; empty documents are left out"});
    }
    if (trains) {
      const TokenizerSpec spec = train_bpe(words, options.vocab_size, [&](int64_t done, int64_t wanted) {
        report("training the tokenizer", double(done) / double(wanted));
      });
      tokenizer = std::make_unique<Tokenizer>(Tokenizer::from_json(to_tokenizer_json(spec), "the new tokenizer"));
      if (tokenizer->vocab_size() < options.vocab_size) {
        log_warning("the vocabulary has {} tokens, not {}: no further pair of tokens is there twice in this text",
                    tokenizer->vocab_size(), options.vocab_size);
      }
    }
  }

  const std::string partial = output + ".partial";
  files.make_directories(directory_of(output));
  files.remove_tree(partial);
  files.make_directory(partial);
  PrepareSummary summary;
  try {
    summary = write_dataset(options, *tokenizer, rule, source, partial, files, clock, pool, report);
  } catch (const Error&) {
    try {
      files.remove_tree(partial);
    } catch (const Error&) {  // the first error is the one to report
    }
    throw;
  }
  const std::string old = output + ".old";
  files.remove_tree(old);
  if (is_there) files.rename(output, old);
  files.rename(partial, output);
  files.sync_directory(directory_of(output));
  files.remove_tree(old);
  summary.seconds = clock.seconds() - start;
  return summary;
}

}  // namespace octet
