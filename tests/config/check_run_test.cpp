#include "tools/train/check_run.h"

#include <catch2/catch.hpp>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/fault_file_system.h"
#include "core/base/thread_pool.h"
#include "tests/support/temporary_directory.h"
#include "tools/data/prepare.h"

namespace octet::test {
namespace {

// A disk with a small dataset, /data, and a configuration of it, /run.yaml.
class Disk {
 public:
  Disk() {
    std::string text;
    for (int i = 0; i < 400; ++i) text += fmt::format("Line {} of a text about {} things.\n", i, i * i % 97);
    files.make_directories("/text");
    files.write_atomically("/text/a.txt", text);
    files.write_atomically("/text/b.txt", text + "and one more");
    ThreadPool pool(1);
    PrepareOptions options;
    options.source.inputs = {"/text"};
    options.output = "/data";
    options.vocab_size = 300;
    prepare_dataset(options, files, real_clock(), pool);
    write_config("");
  }
  void write_config(const std::string& more) {
    files.write_atomically("/run.yaml",
                           "model: {layers: 2, hidden: 64, heads: 2, moe: {num_experts: 4, expert_hidden: 32}}\n"
                           "data: {path: /data, seq_len: 16}\n" +
                               more);
  }
  CheckedRun check(const std::vector<std::string>& overrides = {}) {
    return check_run(files, "/run.yaml", overrides, "/runs/new");
  }
  Error error(const std::vector<std::string>& overrides = {}) {
    return error_of([&] { check(overrides); });
  }

  FaultFileSystem files;
};

}  // namespace

TEST_CASE("check_run accepts a run that can start and counts what it costs", "[config][check]") {
  Disk disk;
  const CheckedRun run = disk.check();
  CHECK(run.vocab_size == 300);
  CHECK(run.dataset.train.num_tokens > 1000);
  CHECK(run.memory.total() > 1 << 20);
  CHECK(run.disk_bytes > uint64_t(checkpoint_size(run.config, 300).bytes));
  CHECK(run.origins.at("data.path") == "/run.yaml:2");
  CHECK(disk.check({"model.vocab_size=512"}).vocab_size == 512);
}

TEST_CASE("check_run reports a dataset that does not fit together with the other mistakes", "[config][check]") {
  Disk disk;
  const Error error =
      disk.error({"model.vocab_size=299", "data.seq_len=1000000", "train.batch_size=7", "train.micro_batch=2"});
  CHECK(error.code() == 2);
  const std::string block = error.block();
  CAPTURE(block);
  CHECK(block.find("model.vocab_size is 299; wanted at least the 300 tokens of /data") != std::string::npos);
  CHECK(block.find("data.seq_len is 1000000; wanted fewer than the ") != std::string::npos);
  CHECK(block.find("train.micro_batch is 2; wanted a divisor of train.batch_size / parallel.dp, 7: 1 or 7") !=
        std::string::npos);
  CHECK(block.find("3 problems") != std::string::npos);

  const Error missing = disk.error({"data.path=/nowhere", "model.moe.top_k=9"});
  CHECK(missing.code() == 2);
  CHECK(missing.block().find("data.path is /nowhere, which does not exist; make it with: octet prepare") !=
        std::string::npos);
  CHECK(missing.block().find("model.moe.top_k is 9") != std::string::npos);
}

TEST_CASE("check_run gives a damaged dataset its own exit code, unless more is wrong", "[config][check]") {
  Disk disk;
  disk.files.content("/data/train-00000.tok")[20] ^= 1;
  CHECK(disk.error().code() == 3);
  const Error both = disk.error({"train.steps=0"});
  CHECK(both.code() == 2);
  CHECK(both.block().find("data.path cannot be used: ") != std::string::npos);
  CHECK(both.block().find("train.steps is 0") != std::string::npos);

  Disk without_json;
  without_json.files.remove_file("/data/dataset.json");
  CHECK(without_json.error().code() == 3);
  Disk without_tokenizer;
  without_tokenizer.files.remove_file("/data/tokenizer.json");
  CHECK(without_tokenizer.error().code() >= 3);
}

TEST_CASE("check_run refuses what this machine cannot hold", "[config][check]") {
  Disk disk;
  disk.files.set_capacity(1 << 20);
  const Error full = disk.error();
  CHECK(full.code() == 5);
  CHECK(full.block().find("one checkpoint needs") != std::string::npos);

  Disk other;
  const Error large = other.error({"model.hidden=131072", "model.layers=64", "model.moe.expert_hidden=131072"});
  CHECK(large.block().find("this run needs") != std::string::npos);
}

TEST_CASE("check_run counts the ranks of a host, and leaves other hosts to themselves", "[config][check]") {
  Disk disk;
  const std::vector<std::string> layout = {"parallel.dp=4", "parallel.ep=2"};
  const CheckedRun run = disk.check(layout);
  CHECK(run.host_ranks == 4);
  CHECK(run.wire.total().bytes > 0);
  CHECK(run.wire.total().off_node == 0);
  CHECK(disk.check({"parallel.dp=4", "parallel.ep=2", "parallel.ranks_per_node=2"}).host_ranks == 2);
  CHECK(disk.check().wire.total().bytes == 0);

  CHECK(run.transport.empty());
  CHECK(run.sharing == 4);
  // Ranks on the GPUs of other hosts, whose messages have one size.
  const auto on_gpus = [&](const char* bound) {
    return check_run(disk.files, "/run.yaml",
                     {"parallel.dp=4", "parallel.ep=4", "device=cuda", "model.vocab_size=300", bound}, "/runs/new",
                     /*elsewhere=*/true);
  };
  const CheckedRun all = on_gpus("parallel.dispatch_bound=0"), bounded = on_gpus("parallel.dispatch_bound=1");
  CHECK(all.transport == "NCCL where each rank has a GPU");
  CHECK(all.sharing == 1);
  CHECK(bounded.wire.rows_back.bytes < all.wire.rows_back.bytes);
  CHECK(bounded.memory.activations < all.memory.activations);

  const std::vector<std::string> large = {"model.hidden=131072", "model.layers=64", "model.moe.expert_hidden=131072",
                                          "data.path=/nowhere"};
  const auto elsewhere = [&](std::vector<std::string> overrides) {
    overrides.insert(overrides.end(), large.begin(), large.end());
    return check_run(disk.files, "/run.yaml", overrides, "/runs/new", /*elsewhere=*/true);
  };
  CHECK(elsewhere({"model.vocab_size=300"}).memory.total() > int64_t(1) << 40);
  const Error error = error_of([&] { elsewhere({}); });
  CHECK(error.block().find("model.vocab_size is 0, the tokenizer's own size") != std::string::npos);
}

}  // namespace octet::test
