#include "tools/train/trainer.h"

#include <cerrno>

#include "tests/checkpoint/thread_ranks.h"
#include "tests/support/numeric.h"
#include "tests/train/small_run.h"

namespace octet::test {
namespace {

int run(FileSystem& files, const Config& config) {
  Trainer trainer(config, {}, "run", files, real_clock());
  return trainer.run();
}

// Every tensor of the last checkpoint, and the losses of all steps.
struct Result {
  std::map<std::string, std::vector<char>> tensors;
  std::vector<double> losses, norms, val_losses;
  std::string samples;
  bool operator==(const Result&) const = default;
};
Result result_of(FileSystem& files, int64_t step) {
  Result result;
  const CheckpointReader reader(files, "run/checkpoints/" + checkpoint_name(step));
  for (size_t i = 0; i < reader.num_tensors(); ++i) {
    const CheckpointReader::Tensor tensor = reader.tensor(i);
    std::vector<char> bytes(size_t(tensor.shape.num_elements() * size_of(tensor.dtype)));
    reader.read_tensor(tensor.name, bytes.data());
    result.tensors[std::string(tensor.name)] = bytes;
  }
  MetricsReader metrics(files, "run/metrics.jsonl");
  for (StepRecord record; metrics.next(record);) {
    result.losses.push_back(record.loss);
    result.norms.push_back(record.grad_norm);
    if (record.val_loss) result.val_losses.push_back(*record.val_loss);
  }
  result.samples = files.read_text("run/samples.txt");
  return result;
}

}  // namespace

// Runs that are killed twice. What they do to memory they do each time: the sanitizers, ten times as slow, see a few.
#ifdef __SANITIZE_ADDRESS__
constexpr uint64_t kKills = 4;
#else
constexpr uint64_t kKills = 20;
#endif

TEST_CASE("a run killed anywhere, twice, ends as the run that was never stopped, bit for bit", "[train][resume]") {
  Config config = small_run();
  config.precision.recipe = GENERATE(Recipe::kFp8Block, Recipe::kFp32);
  CAPTURE(name_of(config.precision.recipe));
  FaultFileSystem unbroken;
  write_dataset(unbroken);
  const FaultFileSystem start = unbroken;
  unbroken.restart();
  REQUIRE(run(unbroken, config) == 0);
  const uint64_t calls = unbroken.calls();
  const Result wanted = result_of(unbroken, config.train.steps);
  REQUIRE(wanted.losses.size() == size_t(config.train.steps));
  REQUIRE(wanted.val_losses.size() == 4);
  CHECK(wanted.losses.back() < wanted.losses.front());
  {
    const TokenDataset data(unbroken, "data", Split::kTrain);
    const SampleOrder order(data.num_tokens(), config.data.seq_len, uint64_t(config.train.seed));
    REQUIRE(order.epoch_of(config.train.steps * config.train.batch_size) >= 2);  // the kills reach a second epoch
  }

  const RandomStream stream(17, "kills");
  for (uint64_t kill = 0; kill < kKills; ++kill) {
    FaultFileSystem files = start;
    int code = -1;
    for (uint64_t attempt = 0; code != 0; ++attempt) {
      REQUIRE(attempt < 3);
      files.restart();
      // Reading a micro-batch is a call too, so that some of these fall between the micro-batches of a step.
      if (attempt < 2) files.stop_at_call(stream.below(calls, kill, attempt));
      INFO("kill " << kill << ", attempt " << attempt);
      try {
        code = run(files, config);
      } catch (const FaultFileSystem::Stopped&) {
      }
    }
    files.restart();  // the second kill may have been meant for a call that the run did not need any more
    CHECK(result_of(files, config.train.steps) == wanted);
  }
}

TEST_CASE("a disk that fills up during a save keeps the training and the checkpoint before", "[train]") {
  Config config = small_run();
  config.train.eval_every_steps = config.train.sample_every_steps = 0;
  config.checkpoint.max_failed_saves = 2;
  FaultFileSystem files;
  write_dataset(files);
  config.train.steps = 3;
  REQUIRE(run(files, config) == 0);
  uint64_t used = 0;
  for (const std::string& name : files.list("run/checkpoints/step-00000003")) {
    used += files.info("run/checkpoints/step-00000003/" + name).size;
  }
  // Full for the saves at 6 and 9, free again after: two failures are forgiven.
  config.train.steps = 12;
  {
    Trainer trainer(config, {}, "run", files, real_clock());
    REQUIRE(trainer.resume() == 3);
    while (trainer.steps_done() < 6) trainer.train_step();
    files.set_capacity((uint64_t(1) << 40) - files.free_bytes("run") + used / 2);
    try {
      trainer.save();
      FAIL("the disk is full");
    } catch (const Error& error) {
      CHECK(error.kind() == ErrorKind::kStorage);
    }
    CHECK(verify_checkpoint(files, "run/checkpoints/step-00000003").empty());
    for (const std::string& name : files.list("run/checkpoints")) CHECK(name.find(".tmp") == std::string::npos);
    files.set_capacity(uint64_t(1) << 40);
    trainer.train_step();
    trainer.save();
    CHECK(verify_checkpoint(files, "run/checkpoints/step-00000007").empty());
  }
  // A disk that stays full ends the run with exit code 5 after max_failed_saves, and the last good one is there.
  files.restart();
  config.train.steps = 40;
  files.set_capacity((uint64_t(1) << 40) - files.free_bytes("run") + used / 2);
  try {
    run(files, config);
    FAIL("the disk is full");
  } catch (const Error& error) {
    CHECK(error.code() == 5);
  }
  files.restart();
  files.set_capacity(uint64_t(1) << 40);
  CHECK(find_newest_good_checkpoint(files, "run/checkpoints")->step == 7);
}

TEST_CASE("a number that is not finite stops the run before it reaches a weight, or is left out", "[train]") {
  Config config = small_run();
  config.train.steps = 6;
  FaultFileSystem files;
  write_dataset(files);
  const bool skip = GENERATE(false, true);
  config.train.on_non_finite = skip ? OnNonFinite::kSkip : OnNonFinite::kStop;
  Trainer trainer(config, {}, "run", files, real_clock());
  trainer.resume();
  trainer.train_step();
  Parameter* gate = nullptr;
  for (Parameter* parameter : trainer.model().parameters()) {
    if (parameter->name() == "model.layers.1.mlp.experts.down_proj.weight") gate = parameter;
  }
  REQUIRE(gate != nullptr);
  const auto before = to_vector<float>(gate->master());
  gate->grad().data<float>()[32 * 16 + 5] = std::numeric_limits<float>::infinity();  // of expert 1
  if (skip) {
    CHECK(trainer.train_step().skipped);
    CHECK(to_vector<float>(gate->master()) == before);
    CHECK_FALSE(trainer.train_step().skipped);
    CHECK(to_vector<float>(gate->master()) != before);
  } else {
    try {
      trainer.train_step();
      FAIL("the gradient is infinite");
    } catch (const Error& error) {
      CHECK(error.code() == 6);
      CHECK_THAT(error.what(), Catch::Contains("model.layers.1.mlp.experts.1.down_proj.weight"));
    }
    CHECK(to_vector<float>(gate->master()) == before);
    CHECK(trainer.steps_done() == 1);
  }
}

TEST_CASE("a checkpoint of another run is refused with each difference", "[train]") {
  Config config = small_run();
  config.train.steps = 3;
  FaultFileSystem files;
  write_dataset(files);
  REQUIRE(run(files, config) == 0);
  Config other = config;
  other.model.moe.top_k = 1;
  other.train.seed = 9;
  other.train.steps = 9;  // may change
  try {
    run(files, other);
    FAIL("another model");
  } catch (const Error& error) {
    CHECK(error.code() == 4);
    CHECK_THAT(error.what(), Catch::Contains("model.moe.top_k is 1 and was 2") && Catch::Contains("train.seed") &&
                                 !Catch::Contains("train.steps"));
  }
  // Precision, batch and length of the run may change.
  other = config;
  other.train.steps = 5;
  other.train.batch_size = 6;
  other.precision.recipe = Recipe::kBf16;
  other.precision.moments = MomentType::kFp32;
  CHECK(run(files, other) == 0);
}

TEST_CASE("a run that goes on keeps the formats that it began with", "[train][resume][products]") {
  Config config = small_run();
  config.train.steps = 6;
  config.precision.products.attention = ProductFormat::kFp8;
  config.precision.products.dense = ProductFormat::kBf16;
  config.precision.products.experts = ProductFormat::kBf16;
  FaultFileSystem unbroken;
  write_dataset(unbroken);
  FaultFileSystem files = unbroken;
  REQUIRE(run(unbroken, config) == 0);
  {
    Trainer trainer(config, {}, "run", files, real_clock());
    trainer.resume();
    while (trainer.steps_done() < 3) trainer.train_step();
    trainer.save();
  }
  for (ProductFormat* format :
       {&config.precision.products.attention, &config.precision.products.dense, &config.precision.products.experts}) {
    *format = ProductFormat::kFaster;
  }
  REQUIRE(run(files, config) == 0);
  CHECK(result_of(files, 6).tensors == result_of(unbroken, 6).tensors);
  CHECK(formats_of_run(files, "run/checkpoints")->layers == LayerFormats{.qkv_proj = LayerFormat::kFp8,
                                                                         .o_proj = LayerFormat::kFp8,
                                                                         .dense = LayerFormat::kBf16,
                                                                         .shared_experts = LayerFormat::kBf16,
                                                                         .experts = LayerFormat::kBf16});
}

TEST_CASE("a run by tiles learns as one by columns, and goes on with the weights that went back",
          "[train][resume][wgrad]") {
  struct Step {
    double loss, norm;
    std::vector<std::string> columns;  // after it
    bool operator==(const Step&) const = default;
  };
  Config config = small_run();
  config.train.log_every_steps = 2;
  constexpr int64_t kSteps = 12, kSaved = 5;
  const auto one_step = [](Trainer& trainer) {
    const StepRecord record = trainer.train_step();
    const WgradTiles* tiles = trainer.model().wgrad_tiles();
    return Step{record.loss, record.grad_norm, tiles == nullptr ? std::vector<std::string>() : tiles->columns()};
  };
  const auto run = [&](WgradOperands wgrad, double limit, FaultFileSystem& files) {
    config.precision.wgrad = wgrad, config.precision.wgrad_underflow_limit = limit;
    write_dataset(files);
    Trainer trainer(config, {}, "run", files, real_clock());
    trainer.resume();
    std::vector<Step> steps;
    while (trainer.steps_done() < kSteps) {
      steps.push_back(one_step(trainer));
      if (trainer.steps_done() == kSaved) trainer.save();
    }
    return steps;
  };
  FaultFileSystem of_columns, of_tiles, of_both;
  const std::vector<Step> columns = run(WgradOperands::kColumns, 0, of_columns);
  const std::vector<Step> tiles = run(WgradOperands::kTiles, 1, of_tiles);
  constexpr double kLimit = 3e-4;
  const std::vector<Step> both = run(WgradOperands::kTiles, kLimit, of_both);
  CHECK(tiles.back().columns.empty());
  CHECK(tiles != columns);
  CHECK(tiles.back().loss < 0.95 * tiles.front().loss);
  CHECK(tiles.back().loss == Approx(columns.back().loss).epsilon(0.01));
  // Some went back before the checkpoint, some after it, and some never did.
  const size_t saved = both[kSaved - 1].columns.size(), last = both.back().columns.size();
  CHECK(both.front() == Step{tiles.front().loss, tiles.front().norm, both.front().columns});
  CHECK((0 < saved && saved < last && last < 10));

  of_both.restart();
  Trainer trainer(config, {}, "run", of_both, real_clock());
  REQUIRE(trainer.resume() == kSaved);
  CHECK(trainer.model().wgrad_tiles()->columns() == both[kSaved - 1].columns);
  for (int64_t step = kSaved; step < kSteps; ++step) CHECK(one_step(trainer) == both[size_t(step)]);
}

TEST_CASE("a format that is left to measurement is decided once, and stands in the run's files", "[train][products]") {
  Config config = small_run();
  config.train.steps = 3;
  config.precision.products.attention = ProductFormat::kAuto;
  config.precision.products.experts = ProductFormat::kFaster;
  FaultFileSystem files;
  write_dataset(files);
  REQUIRE(run(files, config) == 0);
  const CheckpointReader reader(files, newest_checkpoint_of(files, "run"));
  const ProductFormats decided = config_of(reader).precision.products;
  CHECK(decided.experts == ProductFormat::kFaster);
  CHECK(decided.layers.experts != LayerFormat::kAsKind);
  CHECK(decided.layers.qkv_proj == LayerFormat::kFp8);  // auto on a CPU
  CHECK(decided.layers.dense == LayerFormat::kAsKind);  // said
  const std::string text = files.read_text("run/config.yaml");
  CHECK_THAT(text, Catch::Contains(fmt::format("experts: {}", name_of(decided.layers.experts))));
}

TEST_CASE("what the limit of SwiGLU changes is logged, in every recipe", "[train]") {
  Config config = small_run();
  config.precision.recipe = GENERATE(Recipe::kFp8Block, Recipe::kBf16, Recipe::kFp32);
  config.train.log_every_steps = 2;
  const bool is_limited = GENERATE(false, true);
  config.model.swiglu_limit = is_limited ? 0.01f : 0.0f;
  CAPTURE(name_of(config.precision.recipe), is_limited);
  FaultFileSystem files;
  write_dataset(files);
  Trainer trainer(config, {}, "run", files, real_clock());
  trainer.resume();
  for (int64_t step = 1; step <= 4; ++step) {
    const StepRecord record = trainer.train_step();
    CHECK(record.swiglu_clamped_percent.has_value() == (is_limited && (step == 1 || step % 2 == 0)));
    CHECK(record.fp8.empty() == (config.precision.recipe != Recipe::kFp8Block || (step != 1 && step % 2 == 1)));
    if (!record.swiglu_clamped_percent) continue;
    // Some gates and more ups, of two signs.
    CHECK(*record.swiglu_clamped_percent > 1);
    CHECK(*record.swiglu_clamped_percent < 75);
  }
}

TEST_CASE("validation adds nothing to what the next record counts", "[train]") {
  Config config = small_run();
  config.train.log_every_steps = 1;
  config.model.swiglu_limit = 0.01f;
  const auto counts = [&](bool validates) {
    FaultFileSystem files;
    write_dataset(files);
    Trainer trainer(config, {}, "run", files, real_clock());
    trainer.resume();
    std::vector<double> percents;
    for (int64_t step = 1; step <= 3; ++step) {
      const StepRecord record = trainer.train_step();
      for (const Fp8Health& health : record.fp8) percents.push_back(health.flushed_percent);
      percents.push_back(record.swiglu_clamped_percent.value());
      if (validates) trainer.evaluate();
    }
    return percents;
  };
  CHECK(counts(true) == counts(false));
}

TEST_CASE("a model read from a checkpoint gives the losses of the one in training", "[train]") {
  Config config = small_run();
  config.precision.recipe = GENERATE(Recipe::kFp8Block, Recipe::kBf16, Recipe::kFp32);
  config.train.steps = 3;
  FaultFileSystem files;
  write_dataset(files);
  Trainer trainer(config, {}, "run", files, real_clock());
  trainer.resume();
  while (trainer.steps_done() < 3) trainer.train_step();
  trainer.save();
  const CheckpointReader reader(files, newest_checkpoint_of(files, "run"));
  const auto model = load_model(reader, config.data.seq_len);
  const std::vector<int32_t> ids = {5, 100, 7, 200, 31, 1, 0, 255};
  CHECK(to_vector<float>(model->logits(from_vector(ids, {8}), 1)) ==
        to_vector<float>(trainer.model().logits(from_vector(ids, {8}), 1)));
}

TEST_CASE("what rank 0 does alone on a slow disk is no hang", "[train][faults]") {
  Config config = small_run();
  config.parallel.dp = 2;
  config.train.steps = 1;
  config.train.eval_every_steps = config.train.sample_every_steps = 0;
  SharedDisk disk;
  write_dataset(disk.fs);
  // A report is made, written, put on the disk and renamed: four calls.
  constexpr auto kEach = std::chrono::milliseconds(1000);
  const std::vector<Outcome> all =
      outcomes(2, {.communicator = {.timeout_s = 3}, .faults = {}}, [&](Communicator& world) {
        RankFileSystem fs(disk);
        if (world.rank() == 0) fs.slow_down("report.html", kEach);
        Trainer trainer(config, {}, "run", fs, real_clock(), &world);
        trainer.run();
        world.barrier();
      });
  for (const Outcome& outcome : all) CHECK(outcome.text == "");
  CHECK(disk.fs.exists("run/report.html"));
}

}  // namespace octet::test
