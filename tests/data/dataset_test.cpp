#include "tools/data/dataset.h"

#include <algorithm>
#include <cmath>

#include "core/base/fault_file_system.h"
#include "tests/data/text_support.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

constexpr int64_t kVocab = 300;

// A dataset of three training shards and one for validation, with random tokens; returns those for training.
std::vector<int32_t> write_dataset(FileSystem& files, const std::string& directory) {
  files.make_directories(directory);
  std::string tokenizer = real_file_system().read_text(kTokenizers + "tiny.json");
  put(files, directory + "/tokenizer.json", tokenizer);
  DatasetInfo info;
  info.tokenizer_digest = digest_of(tokenizer);
  info.vocab_size = kVocab;
  info.eos_id = 258;
  std::vector<int32_t> all;
  const RandomStream stream(5, "test/tokens");
  const auto add = [&](SplitInfo& split, const std::string& file, size_t n) {
    ShardBuilder builder(kVocab, info.tokenizer_digest);
    std::vector<int32_t> tokens(n);
    for (size_t i = 0; i < n; ++i) tokens[i] = int32_t(stream.below(kVocab, all.size() + i));
    builder.add_document(tokens);
    split.num_tokens += int64_t(n), split.num_documents += 1, split.text_bytes += int64_t(3 * n);
    split.shards.push_back({.file = file, .info = builder.write(files, directory + "/" + file)});
    if (&split == &info.train) all.insert(all.end(), tokens.begin(), tokens.end());
  };
  add(info.train, "train-00000.tok", 1000);
  add(info.train, "train-00001.tok", 1);
  add(info.train, "train-00002.tok", 537);
  add(info.val, "val-00000.tok", 100);
  put(files, directory + "/dataset.json", to_dataset_json(info));
  return all;
}

std::string with(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

}  // namespace

TEST_CASE("a dataset is one stream of tokens over its shards", "[data][dataset]") {
  FaultFileSystem files;
  const auto all = write_dataset(files, "d");
  const TokenDataset dataset(files, "d", Split::kTrain);
  REQUIRE(dataset.num_tokens() == int64_t(all.size()));
  CHECK(dataset.vocab_size() == kVocab);
  CHECK(dataset.digest() == read_dataset_info(files, "d").digest);
  CHECK(dataset.info().bytes_per_token() == 3);
  CHECK(dataset.info().bits_per_byte(std::log(2.0) * 6) == Approx(2));
  for (int64_t first = 0; first <= dataset.num_tokens(); first += 7) {
    for (const int64_t count : {0, 1, 2, 40, 600}) {
      if (first + count > dataset.num_tokens()) continue;
      std::vector<int32_t> got(size_t(count), -1);
      dataset.read(first, count, got.data());
      CHECK(std::equal(got.begin(), got.end(), all.begin() + first));
    }
  }
  int32_t one;
  CHECK(error_of([&] { dataset.read(dataset.num_tokens(), 1, &one); }).kind() == ErrorKind::kArgument);
  CHECK(error_of([&] { dataset.read(1, INT64_MAX, &one); }).kind() == ErrorKind::kArgument);
  CHECK_NOTHROW(dataset.verify());
  CHECK(TokenDataset(files, "d", Split::kVal).num_tokens() == 100);
  CHECK(load_dataset_tokenizer(files, "d").eos_id() == 258);
}

TEST_CASE("a batch is plain slices of the stream, wherever a run begins", "[data][dataset]") {
  FaultFileSystem files;
  const auto all = write_dataset(files, "d");
  const TokenDataset dataset(files, "d", Split::kTrain);
  const int64_t seq_len = GENERATE(1, 16, 100, 1537);
  const DataLoader loader(dataset, SampleOrder(dataset.num_tokens(), seq_len, 3));
  const int64_t n = 2 * loader.order().samples_per_epoch() + 5;  // into the third epoch
  const Batch whole = loader.fetch(0, n);
  REQUIRE(whole.inputs.size() == size_t(n * seq_len));
  for (int64_t s = 0; s < n; ++s) {
    const auto from = all.begin() + loader.order().first_token(s);
    CHECK(std::equal(from, from + seq_len, whole.inputs.begin() + s * seq_len));
    CHECK(std::equal(from + 1, from + 1 + seq_len, whole.targets.begin() + s * seq_len));
  }
  // Two ranks, or a resumed run, read the same samples.
  for (int64_t s = 0; s < n; s += 3) {
    const Batch part = loader.fetch(s, std::min<int64_t>(3, n - s));
    CHECK(std::equal(part.inputs.begin(), part.inputs.end(), whole.inputs.begin() + s * seq_len));
    CHECK(std::equal(part.targets.begin(), part.targets.end(), whole.targets.begin() + s * seq_len));
  }
  CHECK(loader.fetch(0, 0).inputs.empty());
}

TEST_CASE("a dataset file that says what is not so is refused with exit code 3", "[data][dataset]") {
  FaultFileSystem files;
  write_dataset(files, "d");
  const std::string json = files.read_text("d/dataset.json");
  const auto refuses = [&](const std::string& text, const std::string& message) {
    CAPTURE(message);
    files.content("d/dataset.json") = text;
    const Error error = error_of([&] { TokenDataset(files, "d", Split::kTrain); });
    CHECK(error.kind() == ErrorKind::kData);
    CHECK(error.code() == 3);
    CHECK_THAT(error.report().what, Catch::Contains(message));
  };
  refuses("", "not valid JSON");
  refuses("[]", "wanted an object");
  refuses(with(json, "octet-dataset", "webdataset"), "is not \"octet-dataset\"");
  refuses(with(json, "\"version\": 1", "\"version\": 2"), "wanted 1 to 1");
  refuses(with(json, "\"seed\"", "\"sead\""), "unknown key \"sead\"");
  refuses(with(json, "train-00001.tok", "../train-00001.tok"), "no file name");
  refuses(with(json, "train-00001.tok", "/etc/passwd"), "no file name");
  refuses(with(json, "train-00001.tok", ".."), "no file name");
  refuses(with(json, "train-00001.tok", ""), "no file name");
  refuses(with(json, "train-00001.tok", "train\\u0000"), "no file name");
  refuses(with(json, "train-00001.tok", "train-00000.tok"), "second time");
  refuses(with(json, "\"tokens\": 1538", "\"tokens\": 1539"), "says 1539 tokens");
  refuses(with(json, "\"tokens\": 1,", "\"tokens\": 0,"), "wanted 1 to");
  refuses(with(json, "\"tokens\": 1,", "\"tokens\": -1,"), "wanted 1 to");
  refuses(with(json, "\"vocab_size\": 300", "\"vocab_size\": 299"), "not the one of this dataset");
  refuses(with(json, "\"eos_id\": 258", "\"eos_id\": 300"), "wanted 0 to 299");
  refuses(with(json, "\"digest\": \"", "\"digest\": \"x"), "is no digest");
  refuses(with(with(json, "train-00001.tok", "swap"), "train-00000.tok", "train-00001.tok"),
          "not the one of this dataset");
}

TEST_CASE("a shard that was exchanged, changed or lost is found", "[data][dataset]") {
  FaultFileSystem files;
  write_dataset(files, "d");
  const auto error = [&] { return error_of([&] { TokenDataset(files, "d", Split::kTrain).verify(); }); };
  const std::string shard = files.read_text("d/train-00000.tok"), other = files.read_text("d/train-00002.tok");
  files.content("d/train-00000.tok") = other;  // a whole shard, of this dataset
  CHECK(error().kind() == ErrorKind::kData);
  CHECK_THAT(error().report().what, Catch::Contains("train-00000.tok") && Catch::Contains("not the one"));
  files.content("d/train-00000.tok") = shard.substr(0, shard.size() - 1);
  CHECK(error().kind() == ErrorKind::kData);
  files.content("d/train-00000.tok") = shard;
  files.content("d/train-00000.tok")[300] ^= 1;
  CHECK(error().kind() == ErrorKind::kData);
  CHECK_NOTHROW(TokenDataset(files, "d", Split::kVal).verify());
  files.remove_file("d/train-00000.tok");
  CHECK(error().kind() == ErrorKind::kStorage);

  files.content("d/tokenizer.json") += " ";
  CHECK_THAT(error_of([&] { load_dataset_tokenizer(files, "d"); }).report().what,
             Catch::Contains("not the tokenizer this dataset was made with"));
}

TEST_CASE("what is no dataset, and an empty split, say what to do", "[data][dataset]") {
  FaultFileSystem files;
  files.make_directory("d");
  const Error none = error_of([&] { TokenDataset(files, "d", Split::kTrain); });
  CHECK(none.kind() == ErrorKind::kData);
  CHECK_THAT(none.report().fix, Catch::Contains("octet prepare"));
  DatasetInfo info;
  info.vocab_size = 300;
  info.eos_id = 1;
  put(files, "d/dataset.json", to_dataset_json(info));
  const Error empty = error_of([&] { TokenDataset(files, "d", Split::kVal); });
  CHECK(empty.kind() == ErrorKind::kData);
  CHECK_THAT(empty.report().what, Catch::Contains("the val split is empty"));
}

}  // namespace octet::test
