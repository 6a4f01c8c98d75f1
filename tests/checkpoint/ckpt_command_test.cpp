#include <unistd.h>

#include <cstdio>

#include "tests/checkpoint/small_checkpoint.h"
#include "tests/support/temporary_directory.h"
#include "tools/commands/commands.h"

namespace octet::test {
namespace {

struct Outcome {
  int code = -1;
  std::string output;
};

// Runs "octet ckpt ..." with stdout going to a file.
Outcome run_ckpt(const TemporaryDirectory& directory, std::vector<std::string> arguments) {
  CommandLine line("octet", "", [] { return std::string(); });
  add_ckpt_command(line);
  arguments.insert(arguments.begin(), "ckpt");
  Outcome outcome;
  const std::string path = directory / "stdout";
  std::fflush(stdout);
  const int kept = ::dup(STDOUT_FILENO);
  std::FILE* file = std::fopen(path.c_str(), "w");
  REQUIRE((kept >= 0 && file != nullptr && ::dup2(::fileno(file), STDOUT_FILENO) >= 0));
  const auto restore = [&] {
    std::fflush(stdout);
    ::dup2(kept, STDOUT_FILENO);
    ::close(kept);
    std::fclose(file);
  };
  try {
    outcome.code = line.run(arguments);
  } catch (...) {
    restore();
    throw;
  }
  restore();
  outcome.output = real_file_system().read_text(path);
  return outcome;
}

}  // namespace

TEST_CASE("octet ckpt lists and verifies checkpoints", "[checkpoint][command]") {
  const TemporaryDirectory directory;
  FileSystem& fs = real_file_system();
  const std::string run = directory / "run", checkpoints = run + "/checkpoints";
  for (const int64_t step : {10, 20}) {
    const SmallState state(step);
    save_checkpoint(fs, checkpoints, state.info(), state.pieces(), state.text_files());
  }
  for (const std::string& path : {run, checkpoints}) {
    const Outcome list = run_ckpt(directory, {"ls", path});
    CHECK(list.code == 0);
    CHECK_THAT(list.output, Catch::Contains("run-1") && Catch::Contains("20000") && Catch::Contains("step-00000020"));
    const Outcome verified = run_ckpt(directory, {"verify", path});
    CHECK(verified.code == 0);
    CHECK_THAT(verified.output, Catch::Contains("good     " + checkpoints + "/step-00000010"));
  }
  const std::string newest = checkpoints + "/step-00000020";
  CHECK_THAT(run_ckpt(directory, {"ls", newest}).output,
             Catch::Contains("model  BF16     [8, 16]          model.embed.weight\n"));
  CHECK_THAT(run_ckpt(directory, {"ls", "--json", newest}).output,
             Catch::Contains("{\"name\": \"step_count\", \"group\": \"state\", \"dtype\": \"I64\", \"shape\": []}\n"));

  std::string shard = fs.read_text(newest + "/model-00001-of-00001.safetensors");
  shard.back() = char(shard.back() ^ 1);
  fs.write_atomically(newest + "/model-00001-of-00001.safetensors", shard);
  const Outcome damaged = run_ckpt(directory, {"verify", run});
  CHECK(damaged.code == 4);
  CHECK_THAT(damaged.output, Catch::Contains("good     " + checkpoints + "/step-00000010") &&
                                 Catch::Contains("damaged  " + newest) && Catch::Contains("block 0"));
  const Outcome json = run_ckpt(directory, {"verify", "--json", newest});
  CHECK(json.code == 4);
  const JsonSource source{.kind = ErrorKind::kData, .file = "stdout"};
  const Json record = parse_json(json.output, source);
  CHECK_FALSE(JsonCursor(record, source)["good"].as_bool());
  CHECK(JsonCursor(record, source)["damages"].at(0)["file"].as_string() == "model-00001-of-00001.safetensors");

  fs.write_atomically(newest + "/manifest.json", "{");
  CHECK_THAT(run_ckpt(directory, {"ls", run}).output, Catch::Contains("damaged: " + newest + "/manifest.json"));
  CHECK(error_of([&] { run_ckpt(directory, {"ls", directory / "nothing"}); }).code() == 4);
  fs.make_directory(directory / "empty");
  CHECK(error_of([&] { run_ckpt(directory, {"verify", directory / "empty"}); }).code() == 4);
}

}  // namespace octet::test
