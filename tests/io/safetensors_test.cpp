#include "core/io/safetensors.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "core/base/fault_file_system.h"
#include "core/base/random.h"
#include "core/io/json.h"
#include "core/io/safetensors_index.h"
#include "tests/support/memory.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

const std::string kCorpus = std::string(OCTET_SOURCE_DIR) + "/tests/corpus/safetensors";

void put(FileSystem& fs, const std::string& path, std::string_view bytes) {
  fs.create(path)->append(bytes.data(), bytes.size());
}

std::string with_length(std::string_view header, std::string_view data = "") {
  const uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), 8);
  bytes += header;
  bytes += data;
  return bytes;
}

// A small good file with tensors of several types, and its bytes.
std::string sample(FaultFileSystem& fs, const std::string& path) {
  SafetensorsWriter writer(fs, path,
                           {{"model.embed.weight", StoredDType::kBF16, {4, 3}},
                            {"scale", StoredDType::kF32, {}},
                            {"codes", StoredDType::kF8E4M3, {5}}},
                           {{"format", "pt"}});
  const std::string data =
      "0123456789abcdefghijklmn"
      "SCAL"
      "codes";
  writer.append(data.data(), 7);
  writer.append(data.data() + 7, data.size() - 7);
  CHECK(writer.finish() == checksum_hex(fs.read_text(path)));
  return fs.read_text(path);
}

}  // namespace

TEST_CASE("tensors survive writing and reading", "[io][safetensors]") {
  FaultFileSystem fs;
  const std::string bytes = sample(fs, "/a");
  const SafetensorsFile file(fs, "/a");
  REQUIRE(file.tensors().size() == 3);
  CHECK(file.metadata() == std::vector<std::pair<std::string, std::string>>{{"format", "pt"}});
  const auto* embed = file.find("model.embed.weight");
  REQUIRE(embed != nullptr);
  CHECK((embed->dtype == StoredDType::kBF16 && embed->shape == Shape{4, 3}));
  CHECK(embed->begin % 8 == 0);
  std::string read(24, '\0');
  file.read(*embed, 0, read.data(), 24);
  CHECK(read == "0123456789abcdefghijklmn");
  file.read(*file.find("codes"), 1, read.data(), 4);
  CHECK(read.substr(0, 4) == "odes");
  CHECK(file.find("scale")->shape.rank() == 0);
  CHECK(file.find("missing") == nullptr);
  CHECK_THROWS_AS(file.read(*embed, 20, read.data(), 5), Error);
  CHECK(in_memory(StoredDType::kF8E8M0) == std::nullopt);
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat8E4M3, DType::kFloat8E5M2, DType::kInt32,
                            DType::kInt64, DType::kUInt8}) {
    CHECK(in_memory(stored(dtype)) == dtype);
    CHECK(size_of(stored(dtype)) == size_of(dtype));
    CHECK(stored_dtype_named(name_of(stored(dtype))) == stored(dtype));
  }
}

TEST_CASE("a file is not written wrong", "[io][safetensors]") {
  FaultFileSystem fs;
  using Tensors = std::vector<SafetensorsWriter::Tensor>;
  const auto refused = [&](const Tensors& tensors) {
    CHECK(error_of([&] { SafetensorsWriter(fs, "/a", tensors, {}); }).kind() == ErrorKind::kArgument);
    CHECK_FALSE(fs.exists("/a"));
  };
  refused({{"a", StoredDType::kU8, {1}}, {"a", StoredDType::kU8, {1}}});
  refused({{"", StoredDType::kU8, {1}}});
  refused({{"a/b", StoredDType::kU8, {1}}});
  refused({{"a", StoredDType::kU8, {2, 0}}});
  SafetensorsWriter writer(fs, "/b", {{"a", StoredDType::kU8, {2}}}, {});
  CHECK_THROWS_AS(writer.finish(), Error);
  CHECK_THROWS_AS(writer.append("123", 3), Error);
}

TEST_CASE("every stored hostile file ends with its exact code and words", "[io][safetensors][hostile]") {
  FileSystem& fs = real_file_system();
  const JsonSource source{.kind = ErrorKind::kData, .file = "expected.json"};
  const Json expected = parse_json(fs.read_text(kCorpus + "/expected.json"), source);
  const JsonCursor cases(expected, source);
  int files = 0;
  for (const std::string& name : fs.list(kCorpus)) {
    if (name == "expected.json") continue;
    CAPTURE(name);
    ++files;
    const int64_t code = cases[name]["code"].as_int64();
    try {
      const SafetensorsFile file(fs, join_path(kCorpus, name));
      CHECK(code == 0);
    } catch (const Error& error) {
      CHECK(code == error.code());
      CHECK_THAT(error.report().what, Catch::Contains(cases[name]["says"].as_string()));
      CHECK_THAT(error.report().where, Catch::Contains(name + ", byte "));
      CHECK(error.block().size() < 2000);
    }
  }
  CHECK(files == int(expected.if_object()->size()));
  CHECK(files >= 100);
}

TEST_CASE("large hostile headers are refused within their bounds", "[io][safetensors][hostile]") {
  const TemporaryDirectory directory;
  FileSystem& fs = real_file_system();
  const std::string path = directory / "a";
  const auto costs_little = [&](const std::string& says, const std::string& header) {
    put(fs, path, with_length(header));
    const uint64_t bound = (uint64_t(64) << 20) + 2 * header.size();
    const Cost cost;
    const Error error = error_of([&] { SafetensorsFile(fs, path); });
    CHECK(cost.is_within(bound, 1.0));
    CHECK(error.code() == 4);
    CHECK_THAT(error.report().what, Catch::Contains(says));
    fs.remove_file(path);
  };
  std::string header = "{";
  for (int i = 0; i < 1'000'000; ++i) {
    fmt::format_to(std::back_inserter(header), "{}\"t{}\":{{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[{},{}]}}",
                   i == 0 ? "" : ",", i, i, i + 1);
  }
  header += "}";
  put(fs, path, with_length(header, std::string(1'000'000, 'x')));
  {
    const Cost cost;
    CHECK_THAT(error_of([&] { SafetensorsFile(fs, path); }).report().what, Catch::Contains("more than 262144 tensors"));
    CHECK(cost.is_within((uint64_t(64) << 20) + 2 * header.size(), 1.0));
  }
  fs.remove_file(path);
  costs_little("an array", "{\"a\":" + std::string(5'000'000, '['));
  std::string objects = "{\"a\":";
  for (int i = 0; i < 1'000'000; ++i) objects += "{\"a\":";
  costs_little("unknown key", objects);
  costs_little("does not start with", std::string(5'000'000, ' '));
  costs_little("not valid JSON", "{" + std::string(5'000'000, ' '));
  costs_little("has 1048576 bytes; at most 512", "{\"" + std::string(1 << 20, 'x') + "\":{}}");
  std::string axes = "{\"a\":{\"shape\":[1";
  for (int i = 0; i < 1'000'000; ++i) axes += ",1";
  costs_little("more than 4 axes", axes + "]}}");
  std::string keys = "{\"__metadata__\":{\"k\":\"\"";
  for (int i = 0; i < 100'000; ++i) keys += fmt::format(",\"k{}\":\"\"", i);
  costs_little("more than 1024 metadata keys", keys + "}}");
}

TEST_CASE("as many tensors as a file may have are read within their bounds", "[io][safetensors]") {
  const TemporaryDirectory directory;
  FileSystem& fs = real_file_system();
  const std::string path = directory / "a";
  std::vector<SafetensorsWriter::Tensor> tensors;
  const int64_t count = kIsSanitized ? 10'000 : int64_t(kMaxSafetensorsTensors);
  for (int64_t i = 0; i < count; ++i) {
    tensors.push_back(
        {fmt::format("model.layers.{}.mlp.experts.{}.down_proj.weight", i / 256, i % 256), StoredDType::kU8, {1}});
  }
  const std::string data(size_t(count), 'x');
  SafetensorsWriter writer(fs, path, std::move(tensors), {});
  writer.append(data.data(), data.size());
  writer.finish();
  const Cost cost;
  const SafetensorsFile file(fs, path);
  CHECK(cost.is_within((uint64_t(64) << 20) + 2 * fs.info(path).size, 1.0));
  CHECK(file.find("model.layers.7.mlp.experts.9.down_proj.weight")->end > 0);
}

TEST_CASE("no cut, growth or flipped bit of a file does harm", "[io][safetensors][hostile]") {
  FaultFileSystem fs;
  const std::string bytes = sample(fs, "/a");
  std::string& content = fs.content("/a");
  const auto opens = [&] {
    try {
      const SafetensorsFile file(fs, "/a");
      for (const auto& tensor : file.tensors()) {
        std::string data(tensor.end - tensor.begin, '\0');
        file.read(tensor, 0, data.data(), data.size());
      }
      return true;
    } catch (const Error& error) {
      CHECK(error.code() == 4);
      return false;
    }
  };
  for (size_t length = 0; length < bytes.size(); ++length) {
    content = bytes.substr(0, length);
    CHECK_FALSE(opens());
  }
  for (size_t more = 1; more <= 4096; more += 13) {
    content = bytes + std::string(more, '\0');
    CHECK_FALSE(opens());
  }
  content = bytes;
  CHECK(opens());
  int refused = 0;
  const size_t header_end = bytes.find("0123456789");
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      content[at] = char(content[at] ^ (1 << bit));
      const bool is_open = opens();
      refused += !is_open;
      if (at < 8) CHECK_FALSE(is_open);
      content[at] = bytes[at];
    }
  }
  CHECK(refused > int(header_end) * 4);
}

TEST_CASE("random headers are read or refused", "[io][safetensors][hostile]") {
  // Words of the format in random order reach more states than random bytes.
  const std::vector<std::string> words = {"{",
                                          "}",
                                          "[",
                                          "]",
                                          ":",
                                          ",",
                                          "\"a\"",
                                          "\"b\"",
                                          "\"dtype\"",
                                          "\"shape\"",
                                          "\"data_offsets\"",
                                          "\"F32\"",
                                          "\"U8\"",
                                          "0",
                                          "1",
                                          "2",
                                          "4",
                                          "-1",
                                          "1.5",
                                          "null",
                                          "true",
                                          "\"__metadata__\"",
                                          "\"\"",
                                          " ",
                                          "\"a\":{\"dtype\":\"U8\",\"shape\":[1],",
                                          "\"data_offsets\":[0,1]}",
                                          "18446744073709551615"};
  FaultFileSystem fs;
  put(fs, "/a", "");
  const RandomStream random(1, "safetensors words");
  int opened = 0;
  for (uint64_t round = 0; round < 20'000; ++round) {
    std::string header = "{";
    const uint64_t length = random.bits(round, 0) % 16;
    for (uint64_t i = 0; i < length; ++i) header += words[random.bits(round, i + 1) % words.size()];
    header += random.bits(round, 20) % 2 == 0 ? "}" : "";
    fs.content("/a") = with_length(header, std::string(random.bits(round, 21) % 3, 'x'));
    try {
      opened += SafetensorsFile(fs, "/a").tensors().size() <= 2;
    } catch (const Error& error) {
      REQUIRE(error.code() == 4);
    }
  }
  CHECK(opened > 0);
}

TEST_CASE("a file that shrinks while it is read is an error and no signal", "[io][safetensors][hostile]") {
  const TemporaryDirectory directory;
  FileSystem& fs = real_file_system();
  const std::string path = directory / "a";
  const std::string data(1 << 20, 'x');
  SafetensorsWriter writer(fs, path, {{"a", StoredDType::kU8, {1 << 20}}}, {});
  writer.append(data.data(), data.size());
  writer.finish();
  const SafetensorsFile file(fs, path);
  REQUIRE(::truncate(path.c_str(), 4096) == 0);
  std::string read(1 << 20, '\0');
  const Error error = error_of([&] { file.read(file.tensors()[0], 0, read.data(), read.size()); });
  CHECK(error.code() == 5);
  CHECK_THAT(error.report().what, Catch::Contains("ends after byte 4096"));
}

TEST_CASE("an index names files of its own directory that hold what it says", "[io][safetensors][hostile]") {
  const TemporaryDirectory directory;
  FileSystem& fs = real_file_system();
  const std::string one = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
  put(fs, directory / "x.safetensors", with_length(one, "1"));
  put(fs, directory / "y.safetensors", with_length(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "2"));
  put(fs, directory / "a_again.safetensors", with_length(one, "3"));
  REQUIRE(::symlink("/etc/passwd", (directory / "link.safetensors").c_str()) == 0);
  REQUIRE(::mkfifo((directory / "pipe.safetensors").c_str(), 0600) == 0);
  fs.make_directory(directory / "directory.safetensors");
  const std::string index = "model.safetensors.index.json";
  const auto open_with = [&](const std::string& text) {
    fs.write_atomically(directory / index, text);
    return open_safetensors_index(fs, directory.path());
  };
  CHECK(open_with(R"({"metadata": {"total_size": 2}, "weight_map": {"a": "x.safetensors", "b": "y.safetensors"}})")
            .size() == 2);
  const auto refused = [&](const std::string& text, const std::string& says) {
    CAPTURE(text.substr(0, 100));
    const Cost cost;
    const Error error = error_of([&] { open_with(text); });
    CHECK(error.code() == 4);
    CHECK_THAT(error.report().what, Catch::Contains(says));
    CHECK(cost.is_within((uint64_t(64) << 20) + 2 * text.size(), 1.0));
  };
  const auto file_refused = [&](const std::string& file, const std::string& says) {
    refused(R"({"weight_map": {"a": ")" + file + R"("}})", says);
  };
  file_refused("../x", "starts with a dot");
  file_refused("..", "starts with a dot");
  file_refused("/etc/passwd", "holds something other than letters");
  file_refused("d/../../x", "holds something other than letters");
  file_refused("d\\\\x", "holds something other than letters");
  file_refused("x\\u0000.safetensors", "holds something other than letters");
  file_refused("", "is empty");
  file_refused(std::string(300, 'x'), "at most 255");
  file_refused("link.safetensors", "no regular file");
  file_refused("pipe.safetensors", "no regular file");
  file_refused("directory.safetensors", "no regular file");
  file_refused("missing.safetensors", "missing");
  file_refused("y.safetensors", "puts tensor a into y.safetensors");
  refused(R"({"weight_map": {"a": "x.safetensors", "a": "a_again.safetensors"}})", "\"a\" stands twice");
  refused(R"({"weight_map": {}})"
          "x",
          "not valid JSON");
  refused(R"({"weight_map": []})", "no object");
  refused(R"({"weight_map": {"a": 1}})", "wanted a string");
  refused(R"({"weights": {}})", "no key \"weight_map\"");
  refused(R"({"weight_map": {"../a": "x.safetensors"}})", "name holds \"..\"");
  put(fs, directory / "both.safetensors",
      with_length(
          R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
          "12"));
  refused(R"({"weight_map": {"b": "y.safetensors", "a": "both.safetensors"}})",
          "names 1 tensors of both.safetensors, which holds 2");
  std::string many = R"({"weight_map": {"t": "x.safetensors")";
  for (int i = 0; i < 300'000; ++i) fmt::format_to(std::back_inserter(many), ",\"t{}\":\"f{}\"", i, i);
  refused(many + "}}", "more than 4096 files");
}

}  // namespace octet::test
