// Training on ranks as a user has it: octet launch, the real mpirun, processes, signals and files.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <utility>

#include "tests/launch/launched.h"
#include "tools/launch/process.h"
#include "tools/train/metrics.h"
#include "tools/train/rank_output.h"

namespace octet::test {

inline const std::string kOctet = OCTET_BINARY_DIR "/octet", kTrainRank = OCTET_BINARY_DIR "/train_rank";
inline const std::string kConfig = OCTET_SOURCE_DIR "/configs/test.yaml";

inline bool is_skipped() {
  if (!find_program("mpirun").empty()) return false;
  WARN("skipped: there is no mpirun");
  return true;
}

inline std::string prepared(const TemporaryDirectory& directory, const std::string& input) {
  const Finished finished = run_all({{.argv = {kOctet, "prepare", "--input", input, "--include", "*.md", "*.h", "*.cpp",
                                               "--vocab-size", "400", "--output", directory / "data"}}},
                                    60)
                                .front();
  INFO(finished.output);
  REQUIRE(finished.code == 0);
  return directory / "data";
}

// The tokens of all runs here.
inline const std::string& data() {
  static const TemporaryDirectory directory;
  static const std::string path = prepared(directory, OCTET_SOURCE_DIR "/core/base");
  return path;
}

using Sets = std::vector<std::string>;

// A short run in which everything happens: experts on two ranks, validation, samples, checkpoints.
inline Sets short_run(int ranks, int64_t steps) {
  return {"data.path=" + data(),      fmt::format("parallel.dp={}", ranks), "parallel.ep=2",
          "parallel.timeout_s=2",     fmt::format("train.steps={}", steps), "train.micro_batch=1",
          "train.eval_every_steps=3", "train.sample_every_steps=3",         "checkpoint.every_steps=2"};
}

inline std::vector<std::string> octet_train(const std::string& run, const Sets& sets) {
  std::vector<std::string> words = {"train", kConfig, "--out", run};
  for (const std::string& set : sets) words.insert(words.end(), {"--set", set});
  return words;
}

// tests/ranks/train_rank.cpp: RANK WHAT PHASE OPERATION NUMBER.
inline std::vector<std::string> train_rank(const std::string& run, const Sets& sets,
                                           const std::vector<std::string>& fault = {}) {
  std::vector<std::string> words = {kConfig, run};
  words.insert(words.end(), sets.begin(), sets.end());
  if (!fault.empty()) words.emplace_back("--");
  words.insert(words.end(), fault.begin(), fault.end());
  return words;
}

class LaunchedTraining : public Launched {
 public:
  LaunchedTraining(int ranks, const std::string& run, const std::string& program, std::vector<std::string> words)
      : Launched({.program = program, .args = std::move(words), .ranks = ranks, .run_dir = run}) {}
};

inline std::vector<pid_t> children_of(pid_t pid) {
  std::vector<pid_t> children;
  std::error_code ignored;
  for (const auto& thread : std::filesystem::directory_iterator(fmt::format("/proc/{}/task", pid), ignored)) {
    std::ifstream file(thread.path() / "children");
    for (pid_t child = 0; file >> child;) children.push_back(child);
  }
  return children;
}

// What a rank wrote to its log since its last start.
inline std::string last_log(const std::string& run, int rank) {
  const std::string path = RankOutput::path_of(rank, run);
  const std::string text = real_file_system().exists(path) ? real_file_system().read_text(path) : "";
  const size_t begin = text.rfind("==== ");
  return begin == std::string::npos ? text : text.substr(begin);
}

inline std::vector<double> losses(const std::string& run) {
  std::vector<double> all;
  if (!real_file_system().exists(join_path(run, "metrics.jsonl"))) return all;
  MetricsReader reader(real_file_system(), join_path(run, "metrics.jsonl"));
  for (StepRecord record; reader.next(record);) all.push_back(record.loss);
  return all;
}

// The newest checkpoint's tensors: its safetensors files, which are the same bytes for the same state.
inline std::map<std::string, std::string> tensors(const std::string& run, int64_t step) {
  const std::string directory = join_path(run, fmt::format("checkpoints/step-{:08}", step));
  std::map<std::string, std::string> files;
  for (const std::string& name : real_file_system().list(directory)) {
    if (name.ends_with(".safetensors")) files[name] = real_file_system().read_text(join_path(directory, name));
  }
  return files;
}

inline void check_same(const std::string& run, const std::string& whole, int64_t steps) {
  CHECK(losses(run).size() == size_t(steps));
  CHECK(losses(run) == losses(whole));
  const auto mine = tensors(run, steps), wanted = tensors(whole, steps);
  CHECK(wanted.size() >= 3);
  CHECK((mine == wanted));
}

inline void make_script(const std::string& path, const std::string& text) {
  real_file_system().write_atomically(path, "#!/bin/sh\n" + text + "\n");
  REQUIRE(::chmod(path.c_str(), 0700) == 0);
}

}  // namespace octet::test
