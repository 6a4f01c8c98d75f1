// Nothing that is damaged, cut, swapped or stale is ever loaded.
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "tests/checkpoint/small_checkpoint.h"
#include "tests/support/memory.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

const std::string kPath = kDirectory + "/step-00000010";
constexpr size_t kStride = kIsSanitized ? 23 : 1;

// The state reads back exactly, or the reader refuses with code 4.
bool is_refused(FileSystem& fs, const SmallState& state) {
  bool is_exact = false;
  try {
    is_exact = state.is_in(CheckpointReader(fs, kPath));
  } catch (const Error& error) {
    REQUIRE(error.code() == 4);
    return true;
  }
  REQUIRE(is_exact);
  return false;
}

}  // namespace

TEST_CASE("every flipped bit of every file is found and named, and none is read", "[checkpoint][damage]") {
  FaultFileSystem fs;
  const SmallState state(10);
  state.save(fs);
  size_t bits = 0;
  for (const std::string& name : fs.list(kPath)) {
    std::string& content = fs.content(join_path(kPath, name));
    const CheckpointReader sound(fs, kPath);
    for (size_t at = 0; at < content.size(); at += kStride) {
      std::string tensor;
      int64_t block = -1;
      for (const ManifestPiece& piece : sound.manifest().pieces) {
        if (sound.manifest().files[piece.file].name == name && at >= piece.begin && at < piece.end) {
          tensor = piece.name, block = 0;
        }
      }
      for (int bit = 0; bit < 8; ++bit, ++bits) {
        content[at] = char(content[at] ^ (1 << bit));
        CAPTURE(name, at, bit);
        const auto damages = verify_checkpoint(fs, kPath);
        REQUIRE(damages.size() == 1);
        REQUIRE(damages[0].file == name);
        REQUIRE(damages[0].tensor == tensor);
        REQUIRE(damages[0].block == block);
        REQUIRE_THAT(damages[0].what, Catch::Contains(name) && Catch::Contains(tensor));
        if (bit == int(at % 8)) {
          const bool refused = is_refused(fs, state);
          if (!tensor.empty()) REQUIRE(refused);
        }
        content[at] = char(content[at] ^ (1 << bit));
      }
    }
  }
  CHECK(verify_checkpoint(fs, kPath).empty());
  CHECK(bits > 40'000 / kStride);
}

TEST_CASE("a flipped bit of a large tensor is placed to 64 KiB and kept from the reader's buffer",
          "[checkpoint][damage]") {
  FaultFileSystem fs;
  const std::string data(300'000, 'd');
  const TensorPiece piece{"large", TensorGroup::kModel, StoredDType::kU8, {300, 1000}, data.data(), {}};
  save_checkpoint(fs, kDirectory, {.run_id = "r", .step = 10, .code_version = ""}, {piece}, {});
  const CheckpointReader reader(fs, kPath);
  const ManifestPiece saved = reader.manifest().pieces[0];
  std::string& content = fs.content(kPath + "/model-00001-of-00001.safetensors");
  for (uint64_t at = 0; at < data.size(); at += 9973) {
    content[saved.begin + at] ^= 16;
    const auto damages = verify_checkpoint(fs, kPath);
    REQUIRE(damages.size() == 1);
    CHECK(damages[0].block == int64_t(at / kBlockBytes));
    CHECK_THAT(damages[0].what, Catch::Contains(fmt::format("tensor large: block {} (bytes {} to", at / kBlockBytes,
                                                            saved.begin + at / kBlockBytes * kBlockBytes)));
    std::string read(data.size(), '\0');
    CHECK(error_of([&] { reader.read_tensor("large", read.data()); }).code() == 4);
    for (const char c : read) REQUIRE((c == 'd' || c == '\0'));
    // Rows of other blocks are still there.
    const int64_t row = at / kBlockBytes == 0 ? 200 : 10;
    reader.read_tensor("large", Box{{row, 0, 0, 0}, {5, 1000, 0, 0}}, read.data());
    CHECK(read.substr(0, 5000) == data.substr(0, 5000));
    content[saved.begin + at] ^= 16;
  }
}

TEST_CASE("a file of any other length is refused", "[checkpoint][damage]") {
  FaultFileSystem fs;
  const SmallState state(10);
  state.save(fs);
  for (const std::string& name : fs.list(kPath)) {
    std::string& content = fs.content(join_path(kPath, name));
    const std::string kept = content;
    for (size_t length = 0; length < kept.size(); length += kStride) {
      content = kept.substr(0, length);
      CAPTURE(name, length);
      const auto damages = verify_checkpoint(fs, kPath);
      REQUIRE(damages.size() == 1);
      REQUIRE(damages[0].file == name);
      if (length % 16 == 0) REQUIRE(is_refused(fs, state));
    }
    for (size_t more = 1; more <= 4096; more += 61) {
      content = kept + std::string(more, more % 2 == 0 ? '\0' : ' ');
      CAPTURE(name, more);
      REQUIRE(verify_checkpoint(fs, kPath).size() == 1);
      REQUIRE(is_refused(fs, state));
    }
    content = kept;
  }
  CHECK_FALSE(is_refused(fs, state));
}

TEST_CASE("swapped, stale and foreign files are refused", "[checkpoint][damage]") {
  FaultFileSystem fs, foreign;
  const SmallState state(10);
  state.save(fs);
  SmallState(20).save(fs);
  SmallState(10, "run-2").save(foreign);
  const std::vector<std::string> names = fs.list(kPath);
  int refused = 0;
  const auto check = [&](const std::string& name, const std::string& other) {
    std::string& content = fs.content(join_path(kPath, name));
    if (content == other) return;
    const std::string kept = content;
    content = other;
    CAPTURE(name);
    REQUIRE_FALSE(verify_checkpoint(fs, kPath).empty());
    is_refused(fs, state);  // what is read is exact or refused
    content = kept;
    ++refused;
  };
  for (const std::string& name : names) {
    check(name, fs.read_text(kDirectory + "/step-00000020/" + name));                           // of another step
    check(name, foreign.read_text(kPath + "/" + name));                                         // of another run
    for (const std::string& other : names) check(name, fs.read_text(join_path(kPath, other)));  // of another name
  }
  CHECK(refused > 80);
  // A shard with its manifest's lines and blocks from another step, so that only the binding tells.
  const std::string stale = kDirectory + "/step-00000020";
  for (const char* name : {"manifest.json", "blocks.xxh3"}) {
    fs.content(join_path(kPath, name)) = fs.read_text(join_path(stale, name));
  }
  CHECK_FALSE(verify_checkpoint(fs, kPath).empty());
}

TEST_CASE("equal tensors of two steps, names and boxes have different checksums", "[checkpoint][damage]") {
  const CheckpointInfo one{.run_id = "r", .step = 1, .code_version = ""},
      two{.run_id = "r", .step = 2, .code_version = ""}, other{.run_id = "s", .step = 1, .code_version = ""};
  ManifestPiece piece{.name = "a", .dtype = StoredDType::kF32, .shape = {4, 4}, .box = whole_box({4, 4})};
  ManifestPiece named = piece, shaped = piece, boxed = piece, typed = piece;
  named.name = "b";
  shaped.shape = {8, 4};
  boxed.box.start[0] = 1;
  typed.dtype = StoredDType::kI32;
  std::vector<std::string> bindings = {binding_of_piece(one, piece),   binding_of_piece(two, piece),
                                       binding_of_piece(other, piece), binding_of_piece(one, named),
                                       binding_of_piece(one, shaped),  binding_of_piece(one, boxed),
                                       binding_of_piece(one, typed)};
  std::sort(bindings.begin(), bindings.end());
  CHECK(std::unique(bindings.begin(), bindings.end()) == bindings.end());
  CHECK(block_checksum("x", 1, 5, 0) != block_checksum("x", 1, 5, 1));  // two blocks of one piece, swapped
}

TEST_CASE("a part that is missing or no regular file is refused at once", "[checkpoint][damage]") {
  const TemporaryDirectory directory;
  FileSystem& fs = real_file_system();
  const SmallState state(10);
  const std::string path =
      save_checkpoint(fs, directory.path(), state.info(), state.pieces(), state.text_files(), {.shard_bytes = 400});
  for (const std::string& name : fs.list(path)) {
    const std::string file = join_path(path, name), kept = directory / "kept";
    fs.rename(file, kept);
    const std::vector<std::function<void()>> replacements = {
        [] {},
        [&] { fs.make_directory(file); },
        [&] { REQUIRE(::mkfifo(file.c_str(), 0600) == 0); },
        [&] { REQUIRE(::symlink(kept.c_str(), file.c_str()) == 0); },
        [&] { REQUIRE(::symlink("/dev/zero", file.c_str()) == 0); },
    };
    for (size_t i = 0; i < replacements.size(); ++i) {
      CAPTURE(name, i);
      replacements[i]();
      const auto damages = verify_checkpoint(fs, path);
      REQUIRE(damages.size() == 1);
      CHECK(damages[0].file == name);
      CHECK(error_of([&] { CheckpointReader(fs, path); }).code() == 4);
      fs.remove_tree(file);
    }
    fs.rename(kept, file);
    if (::geteuid() != 0) {
      REQUIRE(::chmod(file.c_str(), 0) == 0);
      CHECK_THAT(verify_checkpoint(fs, path).front().what, Catch::Contains("Permission denied"));
      REQUIRE(::chmod(file.c_str(), 0600) == 0);
    }
  }
  CHECK(verify_checkpoint(fs, path).empty());
}

namespace {

// The manifest with one text replaced and its digest made to fit again.
std::string edited(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  text.replace(at, from.size(), to);
  const std::string before = ",\n  \"digest\": \"", after = "\"\n}\n";
  text.resize(text.size() - before.size() - 32 - after.size());
  return text + before + checksum_hex(text) + after;
}

}  // namespace

TEST_CASE("only known format versions are read", "[checkpoint][damage]") {
  FaultFileSystem fs;
  SmallState(10).save(fs);
  const std::string text = fs.read_text(kPath + "/manifest.json"), now = "\"format_version\": 1,";
  CHECK(parse_manifest(edited(text, now, now), "m").format_version == 1);
  const auto refused = [&](const std::string& version, const std::string& says) {
    CAPTURE(version);
    const std::string field = version.empty() ? "" : "\"format_version\": " + version + ",";
    const Error error = error_of([&] { parse_manifest(edited(text, now, field), "m"); });
    CHECK(error.code() == 4);
    CHECK_THAT(error.report().what, Catch::Contains(says));
  };
  refused("2", "was written in format version 2; this program reads up to 1");
  refused("999", "was written in format version 999; this program reads up to 1");
  refused("0", "format_version is 0; this program reads from 1");
  refused("-1", "format_version is -1");
  refused("18446744073709551615", "format_version is 18446744073709551615");
  refused("\"1\"", "format_version is a string");
  refused("1.0", "format_version is a number with a fraction");
  refused("null", "format_version is null");
  refused("", "no key \"format_version\"");
  // A newer version may have keys, and a digest, that this program does not know.
  std::string newer = text;
  newer.replace(newer.find(now), now.size(), "\"format_version\": 2, \"new\": {},");
  CHECK_THAT(error_of([&] { parse_manifest(newer, "m"); }).report().what, Catch::Contains("reads up to 1"));
}

TEST_CASE("a manifest that says impossible things is refused though its digest fits", "[checkpoint][damage]") {
  FaultFileSystem fs;
  SmallState(10).save(fs);
  const std::string text = fs.read_text(kPath + "/manifest.json");
  const auto refused = [&](const std::string& from, const std::string& to, const std::string& says) {
    CAPTURE(from, to);
    const Error error = error_of([&] { parse_manifest(edited(text, from, to), "m"); });
    CHECK(error.code() == 4);
    CHECK_THAT(error.report().what, Catch::Contains(says));
  };
  const std::string shard = "\"name\": \"model-00001-of-00002.safetensors\"";
  refused(shard, "\"name\": \"../model.safetensors\"", "starts with a dot");
  refused(shard, "\"name\": \"/etc/passwd\"", "holds something other");
  refused(shard, "\"name\": \"manifest.json\"", "is the manifest itself");
  refused(shard, "\"name\": \"model-00002-of-00002.safetensors\"", "twice");
  refused(shard, "\"name\": \"x.safetensors\"", "is no file of this checkpoint");
  refused("\"octet checkpoint\"", "\"other\"", "is another format");
  refused("\"step\": 10", "\"step\": -10", "step is -10");
  refused("\"step\": 10", "\"step\": \"10\"", "step is a string");
  refused("\"run_id\": \"run-1\"", "\"run_id\": \"../r\"", "is no run id");
  refused("\"meta\":", "\"extra\": 1, \"meta\":", "unknown key \"extra\"");
  refused("\"meta\":", "\"tokens\": 1, \"meta\":", "\"tokens\" stands twice");
  refused("\"shape\": [8, 16]", "\"shape\": [8, 17]", "bytes in its file");
  refused("\"shape\": [8, 16]", "\"shape\": [9223372036854775807, 16]", "more than 2^63 bytes");
  refused("\"shape\": [8, 16]", "\"shape\": [0, 16]", "wanted 1 to");
  refused("\"shape\": [8, 16]", "\"shape\": [1, 1, 1, 8, 16]", "5 axes");
  refused("\"dtype\": \"BF16\"", "\"dtype\": \"BF15\"", "is no dtype");
  refused("\"group\": \"optim\"", "\"group\": \"option\"", "is no group");
  refused("\"start\": [5, 0]", "\"start\": [6, 0]", "box outside of its shape");
  refused("\"start\": [5, 0]", "\"start\": [4, 0]", "overlapping pieces");
  refused("\"start\": [5, 0]", "\"start\": [5]", "another rank");
  refused("\"shape\": [7, 6], \"start\": [0, 0]", "\"shape\": [8, 6], \"start\": [0, 0]", "different dtypes, shapes");
  refused("\"name\": \"model.norm.weight\"", "\"name\": \"a/b\"", "holds a slash");
  refused("\"name\": \"blocks.xxh3\", \"bytes\": ", "\"name\": \"blocks.xxh3\", \"bytes\": 1",
          "gives blocks.xxh3 a size");
  refused("\"name\": \"blocks.xxh3\"", "\"name\": \"blocks\"", "lacks blocks.xxh3");
}

}  // namespace octet::test
