#include "tools/data/token_shard.h"

#include "core/base/fault_file_system.h"
#include "core/io/json.h"
#include "tests/data/text_support.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

using Documents = std::vector<std::vector<int32_t>>;

Documents random_documents(size_t n, size_t longest, int64_t vocab, uint64_t seed) {
  const RandomStream stream(seed, "test/documents");
  Documents documents;
  for (size_t d = 0; d < n; ++d) {
    auto& tokens = documents.emplace_back(1 + stream.below(longest, d));
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = int32_t(stream.below(uint64_t(vocab), i, d + 1));
  }
  return documents;
}

ShardInfo write(FileSystem& files, const std::string& path, const Documents& documents, int64_t vocab) {
  ShardBuilder builder(vocab, digest_of("tokenizer"));
  for (const auto& tokens : documents) builder.add_document(tokens);
  return builder.write(files, path);
}

std::vector<int32_t> read_all(const ShardReader& reader) {
  std::vector<int32_t> tokens(static_cast<size_t>(reader.num_tokens()));
  reader.read(0, reader.num_tokens(), tokens.data());
  return tokens;
}

}  // namespace

TEST_CASE("a shard gives back its tokens and documents", "[data][token_shard]") {
  const int64_t vocab = GENERATE(1, 2, 300, 65536, 65537, 1000000);
  const auto documents = random_documents(50, 60000, vocab, uint64_t(vocab));  // several blocks
  FaultFileSystem files;
  const ShardInfo info = write(files, "a.tok", documents, vocab);
  const ShardReader reader(files, "a.tok");
  std::vector<int32_t> all;
  std::vector<uint64_t> starts;
  for (const auto& tokens : documents) {
    starts.push_back(all.size());
    all.insert(all.end(), tokens.begin(), tokens.end());
  }
  CHECK(reader.num_tokens() == int64_t(all.size()));
  CHECK(reader.vocab_size() == vocab);
  CHECK(reader.tokenizer_digest() == digest_of("tokenizer"));
  CHECK(std::vector(reader.document_starts().begin(), reader.document_starts().end()) == starts);
  CHECK(reader.info().header_digest == info.header_digest);
  CHECK(files.info("a.tok").size == info.file_bytes);
  CHECK(read_all(reader) == all);
  const RandomStream stream(1, "test/ranges");
  for (uint64_t i = 0; i < 100; ++i) {
    const auto first = stream.below(all.size(), i), count = stream.below(all.size() - first + 1, i, 1);
    std::vector<int32_t> part(count);
    reader.read(int64_t(first), int64_t(count), part.data());
    CHECK(std::equal(part.begin(), part.end(), all.begin() + int64_t(first)));
  }
  CHECK_FALSE(files.exists("a.tok.tmp"));
}

TEST_CASE("a shard refuses what it cannot hold", "[data][token_shard]") {
  FaultFileSystem files;
  ShardBuilder builder(300, {});
  CHECK(error_of([&] { builder.add_document(std::vector<int32_t>{300}); }).kind() == ErrorKind::kArgument);
  ShardBuilder other(300, {});
  CHECK(error_of([&] { other.add_document(std::vector<int32_t>{-1}); }).kind() == ErrorKind::kArgument);
  ShardBuilder empty(300, {});
  empty.add_document({});
  CHECK(error_of([&] { empty.write(files, "b.tok"); }).kind() == ErrorKind::kArgument);
  CHECK(error_of([] { ShardBuilder(0, {}); }).kind() == ErrorKind::kArgument);

  write(files, "a.tok", {{1, 2, 3}}, 300);
  const ShardReader reader(files, "a.tok");
  int32_t to[4];
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 4}, {-1, 1}, {4, 0}, {1, INT64_MAX}, {0, -1}}) {
    CHECK(error_of([&, f = first, c = count] { reader.read(f, c, to); }).kind() == ErrorKind::kArgument);
  }
}

TEST_CASE("hostile shards are refused with exit code 3, file and byte", "[data][token_shard]") {
  const std::string path = kShards + "expected.json";
  const Json expected = read_json(real_file_system(), path, ErrorKind::kData);
  REQUIRE(expected.find("at_open")->if_object()->size() >= 43);
  for (const auto& [name, message] : *expected.find("at_open")->if_object()) {
    CAPTURE(name);
    const Error error = error_of([&] { ShardReader(real_file_system(), kShards + name + ".tok"); });
    CHECK(error.kind() == ErrorKind::kData);
    CHECK(error.code() == 3);
    CHECK_THAT(error.report().what, Catch::Contains(*message.if_string()));
    CHECK_THAT(error.report().where, Catch::Contains(name + ".tok, byte "));
  }
  for (const auto& [name, message] : *expected.find("at_first_read")->if_object()) {
    CAPTURE(name);
    const ShardReader reader(real_file_system(), kShards + name + ".tok");
    for (int attempt = 0; attempt < 2; ++attempt) {  // damage stays damage
      const Error error = error_of([&] { read_all(reader); });
      CHECK(error.kind() == ErrorKind::kData);
      CHECK_THAT(error.report().what, Catch::Contains(*message.if_string()));
      CHECK_THAT(error.report().where, Catch::Contains(name + ".tok, byte "));
    }
    CHECK(error_of([&] { reader.verify(); }).kind() == ErrorKind::kData);
  }
  // Written by the script that wrote the hostile ones, from the format's description alone.
  CHECK(read_all(ShardReader(real_file_system(), kShards + "good_u16.tok")) ==
        std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
  CHECK(read_all(ShardReader(real_file_system(), kShards + "good_u32.tok")) ==
        std::vector<int32_t>{0, 65536, 69999, 5});
}

TEST_CASE("every flipped bit and every truncation of a shard is found", "[data][token_shard]") {
  FaultFileSystem files;
  const auto documents = random_documents(5, 40, 300, 1);
  write(files, "a.tok", documents, 300);
  const std::string whole = files.read_text("a.tok");
  const auto is_refused = [&] {
    try {
      ShardReader(files, "a.tok").verify();
    } catch (const Error& error) {
      return error.kind() == ErrorKind::kData;
    }
    return false;
  };
  REQUIRE_FALSE(is_refused());
  int64_t missed = 0;
  for (size_t at = 0; at < whole.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      files.content("a.tok") = whole;
      files.content("a.tok")[at] = char(whole[at] ^ (1 << bit));
      missed += !is_refused();
    }
    files.content("a.tok") = whole.substr(0, at);
    missed += !is_refused();
  }
  CHECK(missed == 0);
}

TEST_CASE("only the block that is touched is read and checked", "[data][token_shard]") {
  FaultFileSystem files;
  const int64_t tokens = 3 << 19;  // three blocks of two-byte tokens
  write(files, "a.tok", {std::vector<int32_t>(size_t(tokens), 7)}, 300);
  files.content("a.tok")[256 + (5 << 19)] ^= 1;  // in the third
  const ShardReader reader(files, "a.tok");
  std::vector<int32_t> to(1 << 20);
  CHECK_NOTHROW(reader.read(0, 1 << 20, to.data()));
  const Error error = error_of([&] { reader.read((1 << 20) - 1, 2, to.data()); });
  CHECK_THAT(error.report().what, Catch::Contains("block 2"));
  CHECK_THAT(error.report().where, Catch::Contains(fmt::format("byte {}", 256 + (2 << 20))));
}

TEST_CASE("a shard that cannot be written leaves nothing under its name", "[data][token_shard]") {
  const auto documents = random_documents(5, 40, 300, 1);
  uint64_t calls = 0;
  {
    FaultFileSystem files;
    write(files, "a.tok", documents, 300);
    calls = files.calls();
  }
  for (uint64_t n = 0; n < calls; ++n) {
    FaultFileSystem files;
    files.fail_call(n, ENOSPC);
    CHECK(error_of([&] { write(files, "a.tok", documents, 300); }).kind() == ErrorKind::kStorage);
    files.restart();
    CHECK_FALSE(files.exists("a.tok"));
    CHECK_NOTHROW(write(files, "a.tok", documents, 300));  // what the first left behind is no obstacle
    CHECK_NOTHROW(ShardReader(files, "a.tok").verify());
  }
}

}  // namespace octet::test
