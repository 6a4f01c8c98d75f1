// The program as a user runs it: real processes, real signals, real files.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "core/io/json.h"
#include "kernels/device_runtime.h"
#include "tests/support/numeric.h"
#include "tools/train/metrics.h"

namespace octet::test {
namespace {

// A directory for one test, removed with it; the program runs inside.
class Place {
 public:
  Place() {
    char name[] = "/tmp/octet-program-XXXXXX";
    REQUIRE(::mkdtemp(name) != nullptr);
    path_ = name;
  }
  ~Place() { real_file_system().remove_tree(path_); }
  std::string at(const std::string& name) const { return join_path(path_, name); }

  struct Result {
    int code = -1;  // 128 + signal where one ended it
    std::string out, err;
  };
  pid_t start(const std::vector<std::string>& args, const std::string& tag = "last") const {
    const pid_t pid = ::fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
      const int out = ::open(at(tag + ".out").c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
      const int err = ::open(at(tag + ".err").c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600);
      ::dup2(out, 1), ::dup2(err, 2);
      if (::chdir(path_.c_str()) != 0) ::_exit(126);
      std::vector<std::string> words = {OCTET_BINARY_DIR "/octet"};
      words.insert(words.end(), args.begin(), args.end());
      std::vector<char*> argv;
      for (std::string& word : words) argv.push_back(word.data());
      argv.push_back(nullptr);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    return pid;
  }
  Result wait(pid_t pid, const std::string& tag = "last") const {
    int status = 0;
    REQUIRE(::waitpid(pid, &status, 0) == pid);
    return {.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
            .out = real_file_system().read_text(at(tag + ".out")),
            .err = real_file_system().read_text(at(tag + ".err"))};
  }
  Result run(const std::vector<std::string>& args) const { return wait(start(args)); }

  void prepare() const {
    const Result result = run({"prepare", "--input", OCTET_SOURCE_DIR "/docs", OCTET_SOURCE_DIR "/core/base",
                               "--include", "*.md", "*.h", "*.cpp", "--vocab-size", "400", "--output", "data"});
    INFO(result.err);
    REQUIRE(result.code == 0);
  }
  static std::vector<std::string> train(const std::string& out, const std::vector<std::string>& sets = {}) {
    std::vector<std::string> args = {"train",         OCTET_SOURCE_DIR "/configs/test.yaml", "--out", out, "--set",
                                     "data.path=data"};
    for (const std::string& set : sets) args.insert(args.end(), {"--set", set});
    return args;
  }
  std::vector<double> losses(const std::string& out) const {
    MetricsReader reader(real_file_system(), at(out + "/metrics.jsonl"));
    std::vector<double> all;
    for (StepRecord record; reader.next(record);) all.push_back(record.loss);
    return all;
  }
  int64_t steps(const std::string& out) const {
    return real_file_system().exists(at(out + "/metrics.jsonl")) ? int64_t(losses(out).size()) : 0;
  }
  // Waits until a run has done `wanted` steps.
  void wait_for_steps(const std::string& out, int64_t wanted) const {
    for (int i = 0; i < 6000 && steps(out) < wanted; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    REQUIRE(steps(out) >= wanted);
  }
  std::string file(const std::string& name) const { return real_file_system().read_text(at(name)); }

 private:
  std::string path_;
};

}  // namespace

TEST_CASE("prepare, check, train, resume, sample, evaluate and inspect", "[program]") {
  const Place place;
  place.prepare();
  const auto check = place.run({"check", OCTET_SOURCE_DIR "/configs/test.yaml", "--set", "data.path=data"});
  INFO(check.err);
  REQUIRE(check.code == 0);
  CHECK_THAT(check.out, Catch::Contains("arameters"));

  const auto first = place.run(Place::train("run"));
  INFO(first.err);
  REQUIRE(first.code == 0);
  CHECK_THAT(first.out, Catch::Contains("done: 6 steps") && Catch::Contains("validation loss"));
  CHECK(place.losses("run").size() == 6);
  for (const char* name : {"run/config.yaml", "run/metrics.jsonl", "run/samples.txt", "run/report.html", "run/loss.svg",
                           "run/checkpoints/step-00000006/manifest.json"}) {
    CHECK(real_file_system().exists(place.at(name)));
  }
  CHECK_THAT(place.run(Place::train("run")).out, Catch::Contains("all of them before"));

  const auto more = place.run(Place::train("run", {"train.steps=9"}));
  REQUIRE(more.code == 0);
  CHECK(place.losses("run").size() == 9);
  // As one run of nine steps, with another number of threads.
  REQUIRE(place.run(Place::train("whole", {"train.steps=9", "train.threads=1"})).code == 0);
  CHECK(place.losses("whole") == place.losses("run"));
  CHECK(place.file("whole/samples.txt") == place.file("run/samples.txt"));
  // And on the slowest instruction set.
  ::setenv("OCTET_ISA", "generic", 1);
  REQUIRE(place.run(Place::train("generic", {"train.steps=9"})).code == 0);
  ::unsetenv("OCTET_ISA");
  CHECK(place.losses("generic") == place.losses("run"));

  size_t longest = 0;  // any one may end at once: the model has seen the end of a text
  for (const char* seed : {"3", "4", "5"}) {
    const std::vector<std::string> sample = {"sample", "run", "--prompt", "The ", "--tokens", "20", "--seed", seed};
    const auto text = place.run(sample);
    INFO(text.err);
    REQUIRE(text.code == 0);
    CHECK(text.out.starts_with("The "));
    CHECK(place.run(sample).out == text.out);
    longest = std::max(longest, text.out.size());
  }
  CHECK(longest > 6);

  const auto eval = place.run({"eval", "run", "--data", "data"});
  INFO(eval.err);
  REQUIRE(eval.code == 0);
  const JsonSource source{.file = "eval"};
  const Json record = parse_json(eval.out, source);
  CHECK(JsonCursor(record, source)["loss"].as_double() > 0);

  CHECK(place.run({"ckpt", "ls", "run/checkpoints"}).code == 0);
  CHECK(place.run({"ckpt", "verify", "run/checkpoints"}).code == 0);
  CHECK(place.run({"report", "run"}).code == 0);
}

TEST_CASE("a damaged checkpoint is found, and training goes on from the one before", "[program]") {
  const Place place;
  place.prepare();
  REQUIRE(place.run(Place::train("run")).code == 0);
  const std::vector<double> wanted = place.losses("run");
  const std::string victim = place.at("run/checkpoints/step-00000006/optim-00001-of-00001.safetensors");
  REQUIRE(real_file_system().exists(victim));
  std::string bytes = real_file_system().read_text(victim);
  bytes[bytes.size() / 2] = char(bytes[bytes.size() / 2] ^ 4);
  real_file_system().write_atomically(victim, bytes);
  const auto verify = place.run({"ckpt", "verify", "run/checkpoints"});
  CHECK(verify.code == 4);
  CHECK_THAT(verify.out + verify.err, Catch::Contains("optim-00001-of-00001.safetensors"));
  REQUIRE(place.run(Place::train("run")).code == 0);  // repeats steps 5 and 6
  CHECK(place.losses("run") == wanted);
  CHECK(real_file_system().exists(place.at("run/checkpoints/bad-step-00000006")));
}

TEST_CASE("each signal saves, exits with 75, and the run ends as the unbroken one", "[program]") {
  const int signal = GENERATE(SIGTERM, SIGINT, SIGUSR1);
  CAPTURE(signal);
  const Place place;
  place.prepare();
  const std::vector<std::string> longer = {"train.steps=60", "checkpoint.every_steps=0", "train.sample_every_steps=0"};
  REQUIRE(place.run(Place::train("whole", longer)).code == 0);
  const pid_t pid = place.start(Place::train("run", longer));
  place.wait_for_steps("run", 2);
  ::kill(pid, signal);
  const auto stopped = place.wait(pid);
  INFO(stopped.err);
  // A machine that is fast enough may finish first.
  if (place.steps("run") < 60) {
    CHECK(stopped.code == 75);
    CHECK_THAT(stopped.out, Catch::Contains("the same command goes on from there"));
  }
  REQUIRE(place.run(Place::train("run", longer)).code == 0);
  CHECK(place.losses("run") == place.losses("whole"));
}

TEST_CASE("signals that go on until a process has ended do not take its exit code away", "[program]") {
  const int signal = GENERATE(SIGTERM, SIGUSR1);
  CAPTURE(signal);
  const Place place;
  place.prepare();
  const pid_t pid = place.start(Place::train("run", {"train.steps=100000"}));
  place.wait_for_steps("run", 1);
  std::atomic<bool> has_ended{false};
  std::thread sender([&] {
    for (; !has_ended.load(); ::usleep(20)) ::kill(pid, signal);
  });
  const auto stopped = place.wait(pid);
  has_ended.store(true);
  sender.join();
  CHECK(stopped.code == 75);
}

TEST_CASE("a killed process loses nothing but time", "[program]") {
  const Place place;
  place.prepare();
  const std::vector<std::string> longer = {"train.steps=40", "checkpoint.every_steps=3"};
  REQUIRE(place.run(Place::train("whole", longer)).code == 0);
  for (const int64_t steps : {4, 11, 23}) {
    const pid_t pid = place.start(Place::train("run", longer));
    place.wait_for_steps("run", steps);
    ::kill(pid, SIGKILL);
    place.wait(pid);
  }
  REQUIRE(place.run(Place::train("run", longer)).code == 0);
  CHECK(place.losses("run") == place.losses("whole"));
  CHECK(place.run({"ckpt", "verify", "run/checkpoints"}).code == 0);
}

TEST_CASE("two runs on one directory: the second is refused", "[program]") {
  const Place place;
  place.prepare();
  const pid_t pid = place.start(Place::train("run", {"train.steps=100000"}), "first");
  place.wait_for_steps("run", 1);
  const auto second = place.run(Place::train("run", {"train.steps=100000"}));
  CHECK(second.code == 2);
  CHECK_THAT(second.err, Catch::Contains(std::to_string(pid)));
  ::kill(pid, SIGTERM);
  CHECK(place.wait(pid, "first").code == 75);
}

TEST_CASE("what cannot be done is refused in one block with its code", "[program]") {
  const Place place;
  place.prepare();
  const std::string config = OCTET_SOURCE_DIR "/configs/test.yaml";
  struct Case {
    std::vector<std::string> args;
    int code;
    const char* says;
  };
  const Case cases[] = {
      {{}, 2, "octet: error:"},
      {{"trian"}, 2, "octet: error:"},
      {{"train"}, 2, "octet: error:"},
      {{"train", "nowhere.yaml"}, 2, "nowhere.yaml"},
      {{"train", config, "--set", "optim.lrr=1", "--set", "data.path=data"}, 2, "optim.lr"},
      {{"train", config, "--set", "model.heads=3", "--set", "train.batch_size=0", "--set", "data.path=data"},
       2,
       "train.batch_size"},
      {{"train", config, "--set", "data.path=nothing"}, 2, "octet prepare"},
      {{"train", config, "--set", "optim.lr=-1", "--set", "data.path=nothing"}, 2, "octet prepare"},
      {{"train", config, "--set", "data.path=data", "--set", "parallel.dispatch_bound=2"},
       2,
       "parallel.dispatch_bound is 2 with device cpu"},
      {{"train", config, "--set", "data.path=data", "--set", "parallel.gpu_transport=nccl"},
       2,
       "parallel.gpu_transport is nccl with device cpu"},
      {{"check", config, "--set", "data.path=data", "--set", "device=cuda", "--set", "parallel.dp=2", "--set",
        "parallel.dispatch_bound=0.5"},
       2,
       "parallel.dispatch_bound is 0.5; wanted 0 or 1"},
      {{"train", config, "--set", "data.path=data", "--set", "data.seq_len=1000000"}, 2, "data.seq_len"},
      {{"train", config, "--set", "data.path=data", "--set", "model.vocab_size=10"}, 2, "model.vocab_size"},
      {{"sample", "nothing"}, 4, "nothing"},
      {{"sample", "data"}, 4, "data"},
      {{"eval", "nothing", "--data", "data"}, 4, "nothing"},
      {{"ckpt", "verify", "nothing"}, 4, "nothing"},
      {{"bench", "nothing"}, 2, "nothing"},
      {{"bench", "kernels", "tokens=0"}, 2, "tokens=0"},
      {{"bench", "kernels", "hidden=100"}, 2, "hidden is 100"},
      {{"bench", "kernels", "experts=2", "top_k=3"}, 2, "top_k is 3 of 2"},
      {{"bench", "grouped-gemm", "4x64x64"}, 2, "4x64x64"},
      {{"bench", "grouped-gemm", "repeats=0"}, 2, "repeats=0"},
      {{"bench", "grouped-gemm", "peak=0"}, 2, "peak=0"},
      {{"bench", "gemm", "64x64x64", "caches=hot"}, 2, "caches=hot"},
      {{"bench", "quantise", "device=cpu", "tokens=0"}, 2, "tokens=0"},
      {{"bench", "quantise", "device=cpu", "experts=2", "top_k=3"}, 2, "top_k is 3 of 2"},
      {{"bench", "step"}, 2, "no configuration"},
      {{"bench", "step", config, "steps=0"}, 2, "steps=0"},
      {{"bench", "step", config}, 2, "model.vocab_size"},
      {{"bench", "step", "nothing.yaml"}, 2, "nothing.yaml"},
      {{"bench", "step", config, "device=gpu"}, 2, "device"},
      {{"prepare", "--input", "nothing", "--output", "other"}, 3, "nothing"},
      {{"help", "nothing"}, 2, "nothing"},
  };
  for (const Case& test : cases) {
    const auto result = place.run(test.args);
    CAPTURE(test.args, result.err, result.out);
    CHECK(result.code == test.code);
    CHECK_THAT(result.err, Catch::Contains(test.says));
    CHECK_THAT(result.err, Catch::StartsWith("octet: error:") && Catch::Contains("code:"));
  }
  CHECK(place.run({"help"}).code == 0);
  CHECK(place.run({"help", "train"}).code == 0);
  CHECK(place.run({"--version"}).code == 0);
  CHECK(place.run({"train", "--help"}).code == 0);
  CHECK_FALSE(real_file_system().exists(place.at("other")));
}

TEST_CASE("the large libraries of GPUs are not loaded before a GPU wants them", "[program]") {
  const Place place;
  ::setenv("LD_TRACE_LOADED_OBJECTS", "1", 1);  // has the loader name what it would load, and stop
  const auto loaded = place.run({"--version"});
  ::unsetenv("LD_TRACE_LOADED_OBJECTS");
  CHECK_THAT(loaded.out, Catch::Contains("libc.so"));
  CHECK_THAT(loaded.out, !Catch::Contains("libcublas") && !Catch::Contains("libnccl"));
}

TEST_CASE("docs/cli.md is what the program says of itself", "[program]") {
  const Place place;
  const auto printed = place.run({"docs", "cli"});
  REQUIRE(printed.code == 0);
  INFO("octet docs cli > docs/cli.md writes it anew");
  CHECK(printed.out == real_file_system().read_text(OCTET_SOURCE_DIR "/docs/cli.md"));
  CHECK_THAT(place.run({"help", "train"}).out, Catch::Contains("Usage: octet train"));
}

TEST_CASE("bench kernels times every kernel of a step and finds its answers right", "[program]") {
  const Place place;
  const auto ended = place.run(
      {"bench", "kernels", "tokens=40", "hidden=128", "experts=4", "expert_hidden=64", "vocab=50", "repeats=1"});
  CAPTURE(ended.out, ended.err);
  CHECK(ended.code == 0);
  for (const char* kernel : {"embedding_backward", "fp8_grouped_wgrad", "attention_backward", "adamw_step"}) {
    CHECK_THAT(ended.out, Catch::Contains(kernel));
  }
  CHECK_THAT(ended.out, !Catch::Contains("WRONG"));
}

TEST_CASE("bench quantise times what a layer of experts fuses and finds its answers right", "[program]") {
  const Place place;
  const auto ended = place.run({"bench", "quantise", "device=cpu", "tokens=40", "hidden=136", "experts=4", "top_k=2",
                                "expert_hidden=72", "repeats=1"});
  CAPTURE(ended.out, ended.err);
  CHECK(ended.code == 0);
  for (const char* kernel : {"rms_norm, codes alone", "swiglu_backward_fp8", "swiglu_backward_fp8, rows alone",
                             "requantize_columns", "requantize_tiles", "transpose_codes"}) {
    CHECK_THAT(ended.out, Catch::Contains(kernel));
  }
  CHECK_THAT(ended.out, !Catch::Contains("WRONG"));
}

TEST_CASE("bench moe-layer times a layer in both recipes, which agree", "[program]") {
  const Place place;
  const auto ended = place.run(
      {"bench", "moe-layer", "tokens=300", "hidden=136", "expert_hidden=40", "experts=8", "top_k=3", "repeats=1"});
  CAPTURE(ended.out, ended.err);
  CHECK(ended.code == 0);
  for (const char* row : {"T300 d136 n40 E8 K3", "bf16", "fp8_block", "  tiles"})
    CHECK_THAT(ended.out, Catch::Contains(row));
  CHECK_THAT(ended.out, !Catch::Contains("WRONG"));
  const auto refused = place.run({"bench", "moe-layer", "experts=2", "top_k=3"});
  CHECK(refused.code == 2);
  CHECK_THAT(refused.err, Catch::Contains("top_k is 3 of 2 experts"));
}

TEST_CASE("bench products times each layer in both formats", "[program]") {
  const Place place;
  const auto ended = place.run({"bench", "products", OCTET_SOURCE_DIR "/configs/test.yaml", "repeats=1"});
  CAPTURE(ended.out, ended.err);
  CHECK(ended.code == 0);
  for (const char* row : {"qkv_proj", "o_proj", "experts", "all of these", "bf16/fp8"}) {
    CHECK_THAT(ended.out, Catch::Contains(row));
  }
  const auto refused = place.run({"bench", "products", "repeats=1"});
  CHECK(refused.code == 2);
  CHECK_THAT(refused.err, Catch::Contains("no configuration came"));
}

TEST_CASE("bench step times a configuration and learns on made-up tokens", "[program]") {
  const Place place;
  const std::string config = OCTET_SOURCE_DIR "/configs/test.yaml";
  const std::vector<std::string> step = {"bench", "step", config, "model.vocab_size=64", "warmup=1", "steps=3"};
  const auto with = [&step](const std::string& more) {
    auto args = step;
    args.push_back(more);
    return args;
  };
  const auto table = place.run(with("--phases"));
  REQUIRE(table.code == 0);
  for (const char* row : {"tokens/s", "fp8_grouped_gemm", "attention_backward", "between kernels", "the step"}) {
    CHECK_THAT(table.out, Catch::Contains(row));
  }
  const auto record = place.run(with("json"));
  REQUIRE(record.code == 0);
  const Json json = parse_json(record.out, {});
  CHECK(*json.find("tokens_per_step")->if_int64() == 4 * 32);
  CHECK(*json.find("loss_last")->if_double() < *json.find("loss_first")->if_double());
  CHECK(*json.find("ms_median")->if_double() > 0);
  if (gpu::runtime().count > 0) return;
  const auto without_gpu = place.run(with("device=cuda"));
  CHECK(without_gpu.code == 2);
  CHECK_THAT(without_gpu.err, Catch::Contains("cuda:0") || Catch::Contains("without CUDA"));
}

TEST_CASE("hopper arithmetic trains whole runs, on other bits than ideal", "[program]") {
  const Place place;
  place.prepare();
  REQUIRE(place.run(Place::train("ideal")).code == 0);
  REQUIRE(place.run(Place::train("hopper", {"precision.emulation=hopper"})).code == 0);
  REQUIRE(place.run(Place::train("exact", {"precision.emulation=fp64"})).code == 0);
  const auto ideal = place.losses("ideal"), hopper = place.losses("hopper"), exact = place.losses("exact");
  CHECK(ideal != hopper);
  for (size_t i = 0; i < ideal.size(); ++i) {
    CHECK(hopper[i] == Approx(exact[i]).epsilon(0.01));
    CHECK(ideal[i] == Approx(exact[i]).epsilon(0.01));
  }
}

TEST_CASE("octet doctor shows the machine, and says why a GPU cannot be used", "[program]") {
  const Place place;
  const Place::Result result = place.run({"doctor"});
  CHECK_THAT(result.out, Catch::Contains("CPU") && Catch::Contains(gpu::built_for()));
  const int gpus = gpu::runtime().count;
  if (gpus > 0 || !gpu::is_built_in()) {
    CHECK(result.code == 0);
    CHECK(result.err.empty());
    return;
  }
  CHECK(result.code == 2);
  CHECK_THAT(result.err, Catch::StartsWith("octet: error: no GPU can be used") && Catch::Contains("do:  "));
  // And so does every command that would use it.
  place.prepare();
  const std::string config = OCTET_SOURCE_DIR "/configs/test.yaml";
  for (const char* command : {"check", "train"}) {
    const Place::Result refused = place.run({command, config, "--set", "data.path=data", "--set", "device=cuda"});
    CHECK(refused.code == 2);
    CHECK_THAT(refused.err, Catch::Contains("cuda:0 cannot be used") && Catch::Contains("octet doctor"));
  }
}

}  // namespace octet::test
