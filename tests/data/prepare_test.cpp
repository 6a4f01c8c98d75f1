#include "tools/data/prepare.h"

#include <cmath>
#include <map>
#include <set>

#include "core/base/fault_file_system.h"
#include "tests/data/text_support.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

void write_corpus(FileSystem& files, const std::string& directory, int documents) {
  files.make_directories(directory);
  for (int i = 0; i < documents; ++i) {
    put(files, join_path(directory, fmt::format("{:03}.txt", i)), random_text(50 + size_t(i), uint64_t(i)));
  }
}

PrepareOptions options_for(std::vector<std::string> inputs, std::string output) {
  PrepareOptions options;
  options.source.inputs = std::move(inputs);
  options.output = std::move(output);
  options.vocab_size = 320;
  return options;
}

PrepareSummary prepare(FileSystem& files, const PrepareOptions& options, int threads = 1) {
  ThreadPool pool(threads);
  ManualClock clock;
  return prepare_dataset(options, files, clock, pool);
}

std::map<std::string, std::string> contents(FileSystem& files, const std::string& directory) {
  std::map<std::string, std::string> all;
  for (const std::string& name : files.list(directory)) all[name] = files.read_text(join_path(directory, name));
  return all;
}

// The texts of a split, by its end-of-text tokens.
std::vector<std::string> documents_of(FileSystem& files, const std::string& directory, Split split) {
  const TokenDataset dataset(files, directory, split);
  const Tokenizer tokenizer = load_dataset_tokenizer(files, directory);
  const int32_t eos = read_dataset_info(files, directory).eos_id;
  std::vector<int32_t> tokens(size_t(dataset.num_tokens()));
  dataset.read(0, dataset.num_tokens(), tokens.data());
  std::vector<std::string> documents(1);
  for (const int32_t token : tokens) {
    if (token == eos) {
      documents.emplace_back();
    } else {
      documents.back() += tokenizer.decode_token(token);
    }
  }
  CHECK(documents.back().empty());  // the last token ends a document
  documents.pop_back();
  return documents;
}

}  // namespace

TEST_CASE("a dataset gives back every document once, byte for byte", "[data][prepare]") {
  const TemporaryDirectory directory;
  FileSystem& files = real_file_system();
  write_corpus(files, directory / "in", 60);
  put(files, directory / "in/lines.jsonl", "{\"text\": \"one\"}\n{\"text\": \"\"}\n{\"text\": \"two\\n\"}\n");
  PrepareOptions options = options_for({directory / "in"}, directory / "out/");
  options.val_fraction = 0.2;
  options.shard_tokens = 1000;
  const PrepareSummary summary = prepare(files, options);
  CHECK(summary.counts.documents == 62);
  CHECK(summary.counts.empty_documents == 1);
  CHECK(summary.dataset.train.shards.size() > 2);

  std::multiset<std::string> wanted = {"one", "two\n"}, got;
  int64_t wanted_bytes = 7;
  for (int i = 0; i < 60; ++i) {
    const std::string text = random_text(50 + size_t(i), uint64_t(i));
    wanted.insert(text);
    wanted_bytes += int64_t(text.size());
  }
  for (const Split split : {Split::kTrain, Split::kVal}) {
    const auto documents = documents_of(files, directory / "out", split);
    got.insert(documents.begin(), documents.end());
    const SplitInfo& info = split == Split::kTrain ? summary.dataset.train : summary.dataset.val;
    CHECK(info.num_documents == int64_t(documents.size()));
  }
  CHECK(got == wanted);
  CHECK(summary.dataset.train.text_bytes + summary.dataset.val.text_bytes == wanted_bytes);
  CHECK(summary.dataset.val.num_documents > 2);  // 12 wanted; 3 deviations are 9
  CHECK(summary.dataset.val.num_documents < 24);
  CHECK(read_dataset_info(files, directory / "out").digest == summary.dataset.digest);
  CHECK_NOTHROW(TokenDataset(files, directory / "out", Split::kTrain).verify());
}

TEST_CASE("the unigram entropy is that of the split's own tokens", "[data][prepare]") {
  FaultFileSystem files;
  write_corpus(files, "in", 20);
  PrepareOptions options = options_for({"in"}, "out");
  options.val_fraction = 0.3;
  const PrepareSummary summary = prepare(files, options);
  const TokenDataset dataset(files, "out", Split::kVal);
  std::vector<int32_t> tokens(size_t(dataset.num_tokens()));
  dataset.read(0, dataset.num_tokens(), tokens.data());
  std::map<int32_t, double> count;
  for (const int32_t token : tokens) count[token] += 1;
  double entropy = 0;
  for (const auto& [token, n] : count) entropy -= n / double(tokens.size()) * std::log(n / double(tokens.size()));
  CHECK(summary.dataset.val.unigram_nats_per_token == Approx(entropy).epsilon(1e-12));
  CHECK(dataset.info().unigram_nats_per_token == summary.dataset.val.unigram_nats_per_token);
  CHECK(dataset.info().bits_per_byte(entropy) ==
        Approx(entropy / std::log(2.0) * double(tokens.size()) / double(dataset.info().text_bytes)));
}

TEST_CASE("the number of threads changes no byte", "[data][prepare]") {
  FaultFileSystem files;
  write_corpus(files, "in", 40);
  prepare(files, options_for({"in"}, "one"), 1);
  prepare(files, options_for({"in"}, "four"), 4);
  CHECK(contents(files, "one") == contents(files, "four"));
  PrepareOptions other = options_for({"in"}, "other");
  other.seed = 2;
  prepare(files, other, 3);
  CHECK(contents(files, "one") != contents(files, "other"));
}

TEST_CASE("a document stays on its side when others are added", "[data][prepare]") {
  FaultFileSystem files;
  write_corpus(files, "few", 40);
  write_corpus(files, "more", 60);
  for (const std::string name : {"few", "more"}) {
    PrepareOptions options = options_for({name}, name + "-out");
    options.val_fraction = 0.3;
    prepare(files, options);
  }
  const auto few = documents_of(files, "few-out", Split::kVal), more = documents_of(files, "more-out", Split::kVal);
  REQUIRE(few.size() > 3);
  CHECK(more.size() > few.size());
  CHECK(std::includes(more.begin(), more.end(), few.begin(), few.end(), [&](const auto& a, const auto& b) {
    return std::find(more.begin(), more.end(), a) < std::find(more.begin(), more.end(), b);
  }));
}

TEST_CASE("neither split is empty where there is text for both", "[data][prepare]") {
  const int documents = GENERATE(2, 3, 5);
  const double fraction = GENERATE(1e-9, 0.05, 0.5);
  for (uint64_t seed = 0; seed < 5; ++seed) {
    FaultFileSystem files;
    write_corpus(files, "in", documents);
    PrepareOptions options = options_for({"in"}, "out");
    options.val_fraction = fraction;
    options.seed = seed;
    const PrepareSummary summary = prepare(files, options);
    CHECK(summary.dataset.train.num_documents >= 1);
    CHECK(summary.dataset.val.num_documents >= 1);
    CHECK(summary.dataset.train.num_documents + summary.dataset.val.num_documents == documents);
  }
}

TEST_CASE("an only document is cut at a line end", "[data][prepare]") {
  FaultFileSystem files;
  std::string text;
  for (int i = 0; i < 1000; ++i) text += fmt::format("line {}\n", i);
  put(files, "in.txt", text);
  PrepareOptions options = options_for({"in.txt"}, "out");
  options.val_fraction = 0.1;
  prepare(files, options);
  const auto train = documents_of(files, "out", Split::kTrain), val = documents_of(files, "out", Split::kVal);
  REQUIRE(train.size() == 1);
  REQUIRE(val.size() == 1);
  CHECK(train[0] + val[0] == text);
  CHECK(train[0].back() == '\n');
  CHECK(double(val[0].size()) == Approx(0.1 * double(text.size())).epsilon(0.02));

  put(files, "one_line.txt", "éééééééé");
  PrepareOptions one = options_for({"one_line.txt"}, "one");
  one.val_fraction = 0.45;
  prepare(files, one);
  CHECK(documents_of(files, "one", Split::kVal) == std::vector<std::string>{"éééé"});
  put(files, "byte.txt", "x");
  CHECK(prepare(files, options_for({"byte.txt"}, "byte")).dataset.val.num_tokens == 0);
  options.output = "none";
  options.val_fraction = 0;
  CHECK(prepare(files, options).dataset.val.num_tokens == 0);
}

TEST_CASE("a tokenizer that is given is taken as it is", "[data][prepare]") {
  FaultFileSystem files;
  write_corpus(files, "in", 5);
  const std::string json = real_file_system().read_text(kTokenizers + "deepseek_v3.json");
  put(files, "deepseek_v3.json", json);
  PrepareOptions options = options_for({"in"}, "out");
  options.tokenizer_path = "deepseek_v3.json";
  const PrepareSummary summary = prepare(files, options);
  const Tokenizer tokenizer = load_dataset_tokenizer(files, "out");
  CHECK(tokenizer.json() == json);
  CHECK(summary.dataset.eos_id == tokenizer.added_token_id("<｜end▁of▁sentence｜>"));
  CHECK(summary.dataset.vocab_size == tokenizer.vocab_size());

  options.output = "think";
  options.eos_token = "<think>";
  CHECK(prepare(files, options).dataset.eos_id == tokenizer.added_token_id("<think>"));
  options.output = "nobody";
  options.eos_token = "<nobody>";
  CHECK(error_of([&] { prepare(files, options); }).kind() == ErrorKind::kData);
  std::string no_eos = real_file_system().read_text(kTokenizers + "tiny.json");
  no_eos.replace(no_eos.find("<|endoftext|>"), 13, "<|whatever|>");
  put(files, "no_eos.json", no_eos);
  options.tokenizer_path = "no_eos.json";
  options.eos_token.clear();
  const Error error = error_of([&] { prepare(files, options); });
  CHECK(error.kind() == ErrorKind::kData);
  CHECK_THAT(error.report().where, Catch::Contains("<|whatever|>"));
  CHECK_THAT(error.report().fix, Catch::Contains("--eos-token"));
}

TEST_CASE("text that looks like the end of a document does not end it", "[data][prepare]") {
  FaultFileSystem files;
  put(files, "a.txt", "before <|endoftext|> after");
  put(files, "b.txt", "other");
  prepare(files, options_for({"a.txt", "b.txt"}, "out"));
  auto all = documents_of(files, "out", Split::kTrain);
  const auto val = documents_of(files, "out", Split::kVal);
  all.insert(all.end(), val.begin(), val.end());
  CHECK(std::count(all.begin(), all.end(), "before <|endoftext|> after") == 1);
}

TEST_CASE("prepare refuses what it cannot do, with the exact kind, and leaves no trace", "[data][prepare]") {
  FaultFileSystem files;
  write_corpus(files, "in", 3);
  put(files, "empty.txt", "");
  put(files, "bad.jsonl", "{\"text\": \"a\"}\n{\"text\": 1}\n");
  const auto refused = [&](const PrepareOptions& options) {
    const Error error = error_of([&] { prepare(files, options); });
    CHECK_FALSE(files.exists("out"));
    CHECK_FALSE(files.exists("out.partial"));
    return error;
  };
  CHECK(refused(options_for({"nowhere"}, "out")).kind() == ErrorKind::kData);
  CHECK(refused(options_for({"empty.txt"}, "out")).kind() == ErrorKind::kData);
  const Error line = refused(options_for({"in", "bad.jsonl"}, "out"));
  CHECK(line.kind() == ErrorKind::kData);
  CHECK(line.report().where == "bad.jsonl:2");
  CHECK(refused(options_for({"in"}, "")).kind() == ErrorKind::kArgument);
  for (const double fraction : {-0.1, 0.51, std::nan("")}) {
    PrepareOptions options = options_for({"in"}, "out");
    options.val_fraction = fraction;
    CHECK(refused(options).kind() == ErrorKind::kArgument);
  }
  for (const int64_t size : {256, -1, 1 << 21}) {
    PrepareOptions options = options_for({"in"}, "out");
    options.vocab_size = size;
    CHECK(refused(options).kind() == ErrorKind::kArgument);
  }
  PrepareOptions missing = options_for({"in"}, "out");
  missing.tokenizer_path = "nowhere.json";
  CHECK(refused(missing).kind() == ErrorKind::kStorage);

  PrepareOptions skip = options_for({"in", "bad.jsonl"}, "out");
  skip.source.on_bad_line = OnBadLine::kSkip;
  CHECK(prepare(files, skip).counts.bad_lines == 1);
}

TEST_CASE("what is there is replaced only where that was asked for", "[data][prepare]") {
  FaultFileSystem files;
  write_corpus(files, "in", 4);
  files.make_directory("out");
  PrepareOptions options = options_for({"in"}, "out");
  prepare(files, options);  // an empty directory is free
  const auto first = contents(files, "out");
  CHECK(error_of([&] { prepare(files, options); }).kind() == ErrorKind::kArgument);
  CHECK(contents(files, "out") == first);
  options.seed = 9;
  options.vocab_size = 300;
  options.overwrite = true;
  prepare(files, options);
  CHECK(contents(files, "out") != first);
  files.make_directory("mine");
  put(files, "mine/letter.txt", "a");
  options.output = "mine";
  CHECK(error_of([&] { prepare(files, options); }).kind() == ErrorKind::kArgument);
  options.output = "in/000.txt";
  CHECK(error_of([&] { prepare(files, options); }).kind() == ErrorKind::kArgument);
}

TEST_CASE("a dataset is there whole or not at all, wherever its making stops", "[data][prepare]") {
  const auto start = [] {
    FaultFileSystem files;
    write_corpus(files, "in", 3);
    files.sync_directory("in");
    files.restart();
    return files;
  };
  PrepareOptions options = options_for({"in"}, "out");
  options.shard_tokens = 100;
  uint64_t calls = 0;
  {
    FaultFileSystem files = start();
    prepare(files, options);
    calls = files.calls();
    CHECK(files.after_power_loss(0).exists("out"));  // what is reported as done is on the disk
  }
  REQUIRE(calls > 30);
  const auto is_whole_or_absent = [&](FaultFileSystem& files) {
    if (!files.exists("out")) return true;
    TokenDataset(files, "out", Split::kTrain).verify();
    TokenDataset(files, "out", Split::kVal).verify();
    load_dataset_tokenizer(files, "out");
    return true;
  };
  for (uint64_t n = 0; n <= calls; ++n) {
    CAPTURE(n);
    FaultFileSystem files = start();
    files.stop_at_call(n);
    try {
      prepare(files, options);
    } catch (const FaultFileSystem::Stopped&) {
    }
    for (const uint64_t seed : {0, 1, 2, 3}) {
      FaultFileSystem after = files.after_power_loss(seed);
      CHECK(is_whole_or_absent(after));
    }
    files.restart();
    CHECK(is_whole_or_absent(files));
    if (!files.exists("out")) prepare(files, options);  // leftovers are no obstacle
    CHECK(files.exists("out"));
    CHECK(is_whole_or_absent(files));

    FaultFileSystem full = start();
    full.fail_call(n, ENOSPC);
    try {
      prepare(full, options);
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::kStorage);
    }
    full.restart();
    CHECK(is_whole_or_absent(full));
  }
}

}  // namespace octet::test
