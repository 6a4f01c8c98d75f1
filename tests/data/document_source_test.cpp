#include "tools/data/document_source.h"

#include "core/base/fault_file_system.h"
#include "tests/data/text_support.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

using Texts = std::vector<std::string>;

Texts read_all(DocumentSource& source, uint64_t batch_bytes) {
  Texts all;
  while (true) {
    Texts batch = source.next_batch(batch_bytes);
    if (batch.empty()) return all;
    all.insert(all.end(), batch.begin(), batch.end());
  }
}
Texts read_all(FileSystem& files, SourceOptions options, uint64_t batch_bytes = 100) {
  DocumentSource source(files, std::move(options));
  return read_all(source, batch_bytes);
}

}  // namespace

TEST_CASE("directories are walked in order, by name and pattern", "[data][document_source]") {
  FaultFileSystem files;
  for (const char* directory : {"in", "in/b", "in/.hidden", "in/b/c"}) files.make_directory(directory);
  put(files, "in/z.txt", "z");
  put(files, "in/a.md", "a");
  put(files, "in/b/c/x.txt", "x");
  put(files, "in/b/y.cpp", "y");
  put(files, "in/.dot.txt", "dot");
  put(files, "in/.hidden/h.txt", "h");
  put(files, "in/empty.txt", "");
  CHECK(read_all(files, {.inputs = {"in"}}) == Texts{"a", "x", "z"});
  CHECK(read_all(files, {.inputs = {"in"}, .include = {"*.cpp", "?.txt"}}) == Texts{"x", "y", "z"});
  CHECK(read_all(files, {.inputs = {"in"}, .include = {"b/c/*"}}) == Texts{"x"});
  CHECK(read_all(files, {.inputs = {"in/z.txt", "in/b/y.cpp", "in/z.txt"}}) == Texts{"z", "y", "z"});
  DocumentSource source(files, {.inputs = {"in"}});
  read_all(source, 1);
  CHECK(source.counts().documents == 3);
  CHECK(source.counts().empty_documents == 1);
  CHECK(source.bytes_read() == source.total_bytes());
  source.rewind();
  CHECK(read_all(source, 1000).size() == 3);
}

TEST_CASE("links are not followed", "[data][document_source]") {
  const TemporaryDirectory directory;
  put(real_file_system(), directory / "a.txt", "a");
  REQUIRE(::symlink("a.txt", (directory / "b.txt").c_str()) == 0);
  REQUIRE(::symlink(".", (directory / "loop").c_str()) == 0);
  CHECK(read_all(real_file_system(), {.inputs = {directory.path()}}) == Texts{"a"});
}

TEST_CASE("JSONL gives a document per line, however lines fall on reads", "[data][document_source]") {
  FaultFileSystem files;
  Texts wanted;
  std::string lines;
  for (int i = 0; i < 300; ++i) {
    const std::string text = random_text(size_t(i * 3), uint64_t(i), /*is_valid=*/true) + std::to_string(i);
    wanted.push_back(text);
    std::string escaped;
    for (const char c : text) {
      if (c == '\n')
        escaped += "\\n";
      else if (c == '\r')
        escaped += "\\r";
      else if (c == '\t')
        escaped += "\\t";
      else if (c == '"' || c == '\\')
        (escaped += '\\') += c;
      else
        escaped += c;
    }
    lines += "{\"id\": " + std::to_string(i) +
             ", \"meta\": {\"text\": \"no\", \"l\": [1, {\"text\": 2}]}, \"text\": \"" + escaped + "\"}" +
             (i % 3 == 0 ? "\r\n" : "\n") + (i % 7 == 0 ? "\n  \n" : "");
  }
  lines += R"({"text": "no line end \u00e9\ud83d\ude42"})";
  wanted.push_back("no line end é🙂");
  put(files, "a.jsonl", lines);
  CHECK(read_all(files, {.inputs = {"a.jsonl"}}, GENERATE(1, 1000, 1 << 20)) == wanted);
  DocumentSource source(files, {.inputs = {"a.jsonl"}});
  read_all(source, 1000);
  CHECK(source.bytes_read() == lines.size());
}

TEST_CASE("a line longer than a read is one document", "[data][document_source]") {
  FaultFileSystem files;
  const std::string text(9'000'000, 'x');
  put(files, "a.jsonl", "{\"text\": \"" + text + "\"}\n{\"text\": \"b\"}\n");
  CHECK(read_all(files, {.inputs = {"a.jsonl"}}) == Texts{text, "b"});
}

TEST_CASE("a bad line is named by its number, or left out and counted", "[data][document_source]") {
  const std::string bad =
      GENERATE("no json", "{", "[\"text\"]", "\"text\"", "1", "null", "{}", R"({"txt": "a"})", R"({"text": 1})",
               R"({"text": null})", R"({"text": ["a"]})", R"({"text": {"text": "a"}})", R"({"text": "a", "text": "b"})",
               R"({"text": "a"} x)", "{\"text\": \"\xff\"}", R"({"text": "\ud800"})", "{\"text\": \"a\x01\"}",
               R"({"a": {"text": "inner"}})", "\xef\xbb\xbf{\"text\": \"a\"}");
  CAPTURE(bad);
  FaultFileSystem files;
  put(files, "a.jsonl", "{\"text\": \"first\"}\n\n" + bad + "\n{\"text\": \"last\"}\n");
  const Error error = error_of([&] { read_all(files, {.inputs = {"a.jsonl"}}, 1 << 20); });
  CHECK(error.kind() == ErrorKind::kData);
  CHECK(error.code() == 3);
  CHECK(error.report().where == "a.jsonl:3");
  CHECK_THAT(error.report().what, Catch::Contains("a.jsonl:3"));
  CHECK_THAT(error.report().fix, Catch::Contains("--on-bad-line skip"));

  DocumentSource source(files, {.inputs = {"a.jsonl"}, .on_bad_line = OnBadLine::kSkip});
  CHECK(read_all(source, 1 << 20) == Texts{"first", "last"});
  CHECK(source.counts().bad_lines == 1);
}

TEST_CASE("another key can hold the text", "[data][document_source]") {
  FaultFileSystem files;
  put(files, "a.jsonl", R"({"text": 1, "content": "c"})");
  CHECK(read_all(files, {.inputs = {"a.jsonl"}, .text_key = "content"}) == Texts{"c"});
}

TEST_CASE("inputs that cannot be text are refused before anything is read", "[data][document_source]") {
  FaultFileSystem files;
  files.make_directory("in");
  put(files, "in/a.bin", "a");
  const auto refused = [&](SourceOptions options) { return error_of([&] { DocumentSource(files, options); }); };
  CHECK(refused({.inputs = {"nowhere.txt"}}).kind() == ErrorKind::kData);
  const Error none = refused({.inputs = {"in"}});
  CHECK(none.kind() == ErrorKind::kData);
  CHECK_THAT(none.report().what, Catch::Contains("*.txt"));
  CHECK(refused({}).kind() == ErrorKind::kArgument);
  for (const std::string head : {"\x1f\x8b\x08", "\x28\xb5\x2f\xfd", "BZh91AY", "\xfd\x37zXZ", "PK\x03\x04"}) {
    if (files.exists("packed.txt")) files.remove_file("packed.txt");
    put(files, "packed.txt", head + "0123456789");
    const Error error = refused({.inputs = {"packed.txt"}});
    CHECK(error.kind() == ErrorKind::kData);
    CHECK_THAT(error.report().what, Catch::Contains("compressed"));
  }
}

}  // namespace octet::test
