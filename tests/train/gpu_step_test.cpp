// Training on a GPU, a real one or an emulated one, against the CPU.
//
// How far apart the losses may be. Both devices train one model with one recipe, and differ where a float32 sum is
// formed in another order: by about sqrt(K) 2^-24 of the sum, here K <= 128. Where the sum is then rounded to bfloat16,
// whose numbers are 2^-8 apart, it falls to the other side of a boundary in 2 sqrt(K) 2^-16 = 1/2900 of all cases, and
// is off by 2^-8 there: in root mean square 2^-8 / 54, and after the 30 roundings that follow one another in this model
// sqrt(30) times that, 2^-11 of a logit. A GPU may also round the probabilities of attention to bfloat16, 2^-9 of each,
// and an output is a mean over keys of which few errors add up. The loss is a mean over tokens, whose errors are as
// often up as down, so
//   bf16        2^-10 of the loss bounds it
//   fp8_block   an E4M3 code is 2^5 bfloat16 steps wide: a flip passes to it in one case of 2^5, 2^5 times as large,
//               which is 2^2.5 in root mean square: 2^-7
//   fp32        2^-26 of the loss at first, a mean of errors of 2^-22; each step passes on what the weights differ by,
//               at most doubled: 2^-16 after ten
// In the other two recipes a step's own roundings are larger than what it takes over from the one before: Adam follows
// the sign of a gradient that is small against its noise, and there the loss does not depend on the weight. A token
// whose experts were chosen by less than the noise goes elsewhere, one in some hundreds, with weights nearly alike. The
// norm of the gradient, a root of a sum of squares of numbers that passed twice as many roundings: four times as much.
#include <unistd.h>

#include <array>
#include <cstdio>
#include <set>

#include "core/base/fault_file_system.h"
#include "kernels/elementwise.h"
#include "kernels/kernel_profile.h"
#include "kernels/permute.h"
#include "parallel/local_communicator.h"
#include "tests/support/devices.h"
#include "tests/support/numeric.h"
#include "tests/train/small_run.h"
#include "tools/data/made_up_batch.h"
#include "tools/train/model_stats.h"
#include "tools/train/step_graph.h"
#include "tools/train/verify.h"

namespace octet::test {
namespace {

Config step_config(Recipe recipe) {
  Config config;
  config.model.layers = 2;
  config.model.hidden = 64;
  config.model.heads = 2;
  config.model.kv_heads = 1;
  config.model.dense_layers = 1;
  config.model.ffn_hidden = 48;
  config.model.vocab_size = 100;
  config.model.moe.num_experts = 4;
  config.model.moe.top_k = 2;
  config.model.moe.shared_experts = 1;
  config.model.moe.expert_hidden = 32;
  config.model.moe.aux_loss = AuxLoss::kGlobalBatch;
  config.model.moe.aux_loss_alpha = 0.01f;
  config.model.moe.z_loss_beta = 0.001f;
  config.precision.recipe = recipe;
  config.precision.emulation = Fp8Arithmetic::kHopper;  // the tensor core's bits
  config.data.seq_len = 16;
  config.train.batch_size = 4;
  config.train.micro_batch = 2;
  config.optim.lr = 0.001;
  config.optim.grad_clip = 0.5;  // at work from the first step
  return config;
}

// For what does not ask how far numbers are apart: an emulated GPU takes its time.
Config smaller(Config config) {
  config.model.layers = 1;
  config.model.dense_layers = 0;
  config.data.seq_len = 8;
  config.train.batch_size = 2;
  return config;
}

// Of the share of codes that tiles lose, about the middle of what the weights of these small models lose.
constexpr double kSomeLoseMore = 1e-3;

double loss_bound(Recipe recipe) {
  return recipe == Recipe::kFp32 ? 0x1p-16 : recipe == Recipe::kBf16 ? 0x1p-10 : 0x1p-7;
}

class Training {
 public:
  Training(const Config& config, Device device)
      : config_(config),
        model_(config.model, config.precision, recompute_parts(config.train), config.data.seq_len,
               std::make_unique<LocalDispatcher>(), device),
        optimizer_(model_.parameters(), config.optim, moments_dtype(config.precision)),
        plan_(plan_step(config, 0)),
        tokens_(plan_, device),
        losses_(plan_, device),
        graph_(device, config.train.cuda_graph, 1) {
    model_.init_weights(1);
  }

  // All of a step, asked for.
  void ask(int64_t step) {
    tokens_.fill([&](int64_t m) {
      return made_up_batch(7, step * plan_.micro_batches + m, plan_.sequences, plan_.seq_len, config_.model.vocab_size);
    });
    optimizer_.prepare(step, config_.optim.lr);
    ask_for_step(graph_, model_, optimizer_, plan_, tokens_, losses_, nullptr);
  }
  StepSums sum() { return sum_step(model_, optimizer_, plan_, losses_); }
  StepSums step(int64_t number) {
    ask(number);
    return sum();
  }

  Transformer& model() { return model_; }
  int64_t graph_launches() const { return graph_.launches(); }
  std::vector<std::vector<float>> masters() {
    std::vector<std::vector<float>> all;
    for (Parameter* parameter : model_.parameters()) all.push_back(to_vector<float>(parameter->master()));
    return all;
  }

 private:
  Config config_;
  Transformer model_;
  AdamW optimizer_;
  StepPlan plan_;
  StepTokens tokens_;
  StepLosses losses_;
  StepGraph graph_;
};

struct Curve {
  std::vector<double> losses, norms, balance;
  std::vector<std::vector<int64_t>> loads;
  std::vector<std::vector<float>> masters;
  bool operator==(const Curve&) const = default;
};
Curve ten_steps(const Config& config, Device device) {
  Training training(config, device);
  Curve curve;
  for (int64_t step = 1; step <= 10; ++step) {
    const StepSums sums = training.step(step);
    curve.losses.push_back(sums.loss);
    curve.norms.push_back(sums.grad_norm);
    curve.balance.push_back(sums.balance_loss + sums.z_loss);
    curve.loads.insert(curve.loads.end(), sums.loads.begin(), sums.loads.end());
  }
  curve.masters = training.masters();
  const bool is_captured = !device.is_cpu() && config.train.cuda_graph == CudaGraph::kAuto;
  CHECK(training.graph_launches() == (is_captured ? 9 : 0));  // all but the first
  return curve;
}

void check_near(const std::vector<double>& got, const std::vector<double>& wanted, double tolerance) {
  REQUIRE(got.size() == wanted.size());
  for (size_t i = 0; i < got.size(); ++i) {
    INFO("number " << i + 1 << ": " << got[i] << " and " << wanted[i] << " on the CPU, apart by "
                   << std::abs(got[i] / wanted[i] - 1) << " of it");
    CHECK(std::abs(got[i] - wanted[i]) <= tolerance * std::abs(wanted[i]));
  }
}

std::map<std::string, std::vector<char>> saved_tensors(FileSystem& files) {
  std::map<std::string, std::vector<char>> all;
  const CheckpointReader reader(files, "run/checkpoints/" + checkpoint_name(3));
  for (size_t i = 0; i < reader.num_tensors(); ++i) {
    const CheckpointReader::Tensor tensor = reader.tensor(i);
    std::vector<char>& bytes = all[std::string(tensor.name)];
    bytes.resize(size_t(tensor.shape.num_elements() * size_of(tensor.dtype)));
    reader.read_tensor(tensor.name, bytes.data());
  }
  return all;
}

}  // namespace

TEST_CASE("ten steps on a GPU stay within their bound of the CPU's, and come again bit for bit", "[train][gpu]") {
  if (!has_gpu()) return;
  const auto [recipe, wgrad] = GENERATE(
      std::pair(Recipe::kFp32, WgradOperands::kColumns), std::pair(Recipe::kBf16, WgradOperands::kColumns),
      std::pair(Recipe::kFp8Block, WgradOperands::kColumns), std::pair(Recipe::kFp8Block, WgradOperands::kTiles));
  CAPTURE(name_of(recipe), name_of(wgrad));
  Config config = step_config(recipe);
  config.precision.wgrad = wgrad;
  config.precision.wgrad_underflow_limit = 1;
  const Curve cpu = ten_steps(config, Device{}), gpu = ten_steps(config, kGpu);
  CHECK(cpu.losses.back() < 0.9 * cpu.losses.front());
  check_near(gpu.losses, cpu.losses, loss_bound(recipe));
  check_near(gpu.norms, cpu.norms, 4 * loss_bound(recipe));
  check_near(gpu.balance, cpu.balance, 4 * loss_bound(recipe));
  // In a captured step tokens still go where they want to.
  CHECK(std::set<std::vector<int64_t>>(gpu.loads.begin(), gpu.loads.end()).size() > 5);
  config.train.cuda_graph = CudaGraph::kOff;
  const ReversedGpu reversed;  // of an emulated GPU: every order of threads and blocks is the other way round
  CHECK(ten_steps(config, kGpu) == gpu);
}

TEST_CASE("steps by tiles on a GPU, captured anew when a weight goes back to columns", "[train][gpu][wgrad]") {
  if (!has_gpu()) return;
  Config config = smaller(step_config(Recipe::kFp8Block));
  config.precision.wgrad = WgradOperands::kTiles;
  config.precision.wgrad_underflow_limit = kSomeLoseMore;
  struct Steps {
    std::vector<double> losses, norms;
    std::vector<std::vector<std::string>> columns;
    std::vector<std::vector<float>> masters;
    bool operator==(const Steps&) const = default;
  };
  int64_t launches = 0;
  const auto run = [&](CudaGraph cuda_graph) {
    config.train.cuda_graph = cuda_graph;
    Training training(config, kGpu);
    Steps steps;
    for (int64_t step = 1; step <= 8; ++step) {
      const int64_t before = gpu::host_waits();
      training.ask(step);
      const StepSums sums = training.sum();
      if (gpu::runtime().is_emulated && cuda_graph == CudaGraph::kOff) CHECK(gpu::host_waits() - before == 1);
      steps.losses.push_back(sums.loss), steps.norms.push_back(sums.grad_norm);
      steps.columns.push_back(training.model().wgrad_tiles()->columns());
    }
    steps.masters = training.masters();
    launches = training.graph_launches();
    return steps;
  };
  const Steps plain = run(CudaGraph::kOff), captured = run(CudaGraph::kAuto);
  CHECK(captured == plain);
  int64_t changes = 0;  // that a later step of the eight follows
  for (size_t step = 1; step + 1 < plain.columns.size(); ++step) {
    changes += plain.columns[step] != plain.columns[step - 1];
  }
  changes += !plain.columns[0].empty();
  CHECK(changes > 0);
  CHECK(plain.columns.back().size() < 6);  // not all of them
  CHECK(launches == 8 - 1 - changes);      // the first of each kind runs kernel by kernel
  const ReversedGpu reversed;
  CHECK(run(CudaGraph::kOff) == plain);
}

TEST_CASE("weights are transposed once for the micro-batches of a step, and no bit is another", "[train][gpu]") {
  if (!has_gpu()) return;
  Config config = smaller(step_config(Recipe::kFp8Block));
  config.device = DeviceType::kCuda;
  config.train.batch_size = 3, config.train.micro_batch = 1;
  config.precision.products.layers.shared_experts = LayerFormat::kBf16;
  constexpr int64_t kWeights = 4;  // of attention and of experts, in FP8
  const auto curve = [&](CudaGraph cuda_graph) {
    config.train.cuda_graph = cuda_graph;
    Training training(config, kGpu);
    Curve steps;
    for (int64_t step = 1; step <= 4; ++step) {
      const StepSums sums = training.step(step);
      steps.losses.push_back(sums.loss), steps.norms.push_back(sums.grad_norm);
    }
    steps.masters = training.masters();
    for (Parameter* weight : training.model().parameters()) CHECK_FALSE(weight->transposed_codes().is_defined());
    CHECK(training.graph_launches() == (cuda_graph == CudaGraph::kAuto ? 3 : 0));
    if (cuda_graph == CudaGraph::kAuto) return steps;
    kernels::KernelProfile profile(real_clock());
    training.step(5);
    int64_t transposed = 0;
    for (const kernels::KernelProfile::Row& row : profile.rows()) {
      if (std::string(row.cost.name) == "transpose_codes") transposed += row.calls;
    }
    CHECK(transposed == kWeights);
    return steps;
  };
  // Each micro-batch by itself, as if the weight changed after it.
  const auto one_by_one = [&] {
    Transformer model(config.model, config.precision, {}, config.data.seq_len, std::make_unique<LocalDispatcher>(),
                      kGpu);
    model.init_weights(1);
    AdamW optimizer(model.parameters(), config.optim, moments_dtype(config.precision));
    const StepPlan plan = plan_step(config, 0);
    const StepLosses losses(plan, kGpu);
    Curve steps;
    for (int64_t step = 1; step <= 4; ++step) {
      optimizer.prepare(step, config.optim.lr);
      for (Router* router : model.routers()) router->begin_step();
      for (int64_t m = 0; m < plan.count; ++m) {
        const Transformer::MicroBatch tokens = tokens_on(
            kGpu,
            made_up_batch(7, step * plan.micro_batches + m, plan.sequences, plan.seq_len, config.model.vocab_size));
        const auto parts = model.train_micro_batches({&tokens, 1}, plan.sequences, 1.0f / float(plan.tokens()),
                                                     1.0f / float(plan.micro_batches));
        copy(parts[0].losses, losses.of(m));
      }
      optimizer.measure();
      apply_update(model, optimizer, losses, nullptr);
      const StepSums sums = sum_step(model, optimizer, plan, losses);
      steps.losses.push_back(sums.loss), steps.norms.push_back(sums.grad_norm);
    }
    for (Parameter* weight : model.parameters()) steps.masters.push_back(to_vector<float>(weight->master()));
    return steps;
  };
  const Curve wanted = one_by_one();
  CHECK(curve(CudaGraph::kOff) == wanted);
  CHECK(curve(CudaGraph::kAuto) == wanted);
  config.parallel.interleave = 3;
  CHECK(curve(CudaGraph::kOff) == wanted);
}

TEST_CASE("the memory of weights that are kept transposed is predicted", "[train][gpu][memory]") {
  if (!has_gpu()) return;
  Config config = smaller(step_config(Recipe::kFp8Block));
  config.device = DeviceType::kCuda;
  config.model.hidden = 128, config.model.moe.expert_hidden = 128;
  config.train.micro_batch = 1, config.train.sample_tokens = 1;
  struct Memory {
    int64_t measured = 0;
    MemoryEstimate predicted;
  };
  const auto peak = [&](int64_t micro_batches) {
    config.train.batch_size = micro_batches;
    const MemoryUse before = memory_use(kGpu);
    Training training(config, kGpu);
    training.step(1);
    reset_peak_memory(kGpu);
    training.step(2);
    int64_t held = 0;
    for (const int64_t bytes : before.current_bytes) held += bytes;
    return Memory{memory_use(kGpu).peak_total_bytes - held, estimate_memory(config, 0)};
  };
  const Memory one = peak(1), three = peak(3);
  CHECK(one.predicted.transposed == 0);
  const int64_t attention = 128 * (128 + 2 * 64) + 128 * 128, ffn = 3 * 128 * 128;
  CHECK(three.predicted.transposed == attention + (4 + 1) * ffn);
  CAPTURE(one.measured, three.measured, three.predicted.transposed);
  // Besides them, the tokens and losses of two micro-batches more.
  CHECK(double(three.measured - one.measured) == Approx(double(three.predicted.transposed)).epsilon(0.01));
  const MemoryEstimate& all = three.predicted;
  const int64_t predicted =
      all.masters + all.weights + all.gradients + all.moments + all.activations + all.workspace + all.transposed;
  CHECK(double(predicted) == Approx(double(three.measured)).epsilon(0.05));
}

TEST_CASE("the host waits for no number of a step before it has asked for all of it", "[train][gpu]") {
  if (!has_gpu()) return;
  Config config = smaller(step_config(Recipe::kBf16));
  config.train.micro_batch = 1;  // two
  config.train.recompute = {Recompute::kBlock};
  config.train.cuda_graph = GENERATE(CudaGraph::kAuto, CudaGraph::kOff);
  Training training(config, kGpu);
  training.step(1);  // what is made once
  training.step(2);  // the capture waits for what runs
  const bool is_emulated = gpu::runtime().is_emulated;
  for (int64_t step = 3; step <= 4; ++step) {
    const int64_t before = gpu::host_waits();
    training.ask(step);
    CHECK(gpu::host_waits() == before);
    training.sum();
    CHECK(gpu::host_waits() - before <= 1);  // none where the GPU was faster than the host
    if (is_emulated) CHECK(gpu::host_waits() - before == 1);
  }
}

TEST_CASE("a step that cannot be captured runs kernel by kernel", "[train][gpu]") {
  if (!has_gpu()) return;
  const Tensor x = zeros({1}, DType::kFloat32, MemoryCategory::kWorkspace, kGpu), one = empty_like(x);
  copy(from_vector<float>({1}, {1}), one);
  const auto count_up = [&] { kernels::add_into({.a = x, .b = one, .y = x}, x.stream()); };
  int asked = 0, forgotten = 0;
  const auto run = [&](StepGraph& graph, bool waits) {
    const auto ask = [&] {
      ++asked;
      count_up();
      if (waits) gpu::synchronize(x.stream());
    };
    graph.run({}, ask, [&] { ++forgotten; });
  };
  StepGraph waiting(kGpu, CudaGraph::kAuto, 1), off(kGpu, CudaGraph::kOff, 1), shared(kGpu, CudaGraph::kAuto, 2);
  StepGraph captured(kGpu, CudaGraph::kAuto, 1);
  for (int step = 0; step < 4; ++step) run(waiting, true);
  CHECK(asked == 5);  // once in vain
  CHECK(forgotten == 1);
  CHECK(to_vector<float>(x)[0] == 4.0f);
  for (StepGraph* graph : {&off, &shared}) {
    for (int step = 0; step < 3; ++step) run(*graph, false);
    CHECK(graph->launches() == 0);
  }
  CHECK(asked == 11);
  for (int step = 0; step < 4; ++step) run(captured, false);
  CHECK(asked == 13);
  CHECK(captured.launches() == 3);
  CHECK(waiting.launches() == 0);
  CHECK(to_vector<float>(x)[0] == 14.0f);
  captured.run(
      {.plan = {.count = 2}}, [&] { ++asked; }, [] {});  // of another kind
  CHECK(asked == 14);
  CHECK(forgotten == 1);
}

TEST_CASE("a GPU leaves a step that is not finite out by itself, as if it had not been", "[train][gpu]") {
  if (!has_gpu()) return;
  Config config = smaller(step_config(Recipe::kBf16));
  config.train.cuda_graph = GENERATE(CudaGraph::kAuto, CudaGraph::kOff);
  Training training(config, kGpu), twin(config, kGpu);
  for (int64_t step = 1; step <= 3; ++step) training.step(step), twin.step(step);
  const auto masters = training.masters();
  const Router& router = *training.model().routers()[0];
  const auto bias = to_vector<float>(router.bias()), share = to_vector<float>(router.last_load_share());
  CHECK(std::set<float>(bias.begin(), bias.end()).size() > 1);

  Parameter& norm = *training.model().units().back()[0];  // in float32, and its own master
  const auto weight = to_vector<float>(norm.master());
  copy(from_vector(std::vector<float>(weight.size(), 3e38f), norm.master().shape()), norm.master());
  CHECK_FALSE(training.step(4).is_finite());
  copy(from_vector(weight, norm.master().shape()), norm.master());
  CHECK(training.masters() == masters);
  CHECK(to_vector<float>(router.bias()) == bias);
  CHECK(to_vector<float>(router.last_load_share()) == share);
  const StepSums after = training.step(5), wanted = twin.step(5);
  CHECK(after.is_finite());
  CHECK(after.loss == wanted.loss);
  CHECK(after.loads == wanted.loads);
  CHECK(training.masters() == twin.masters());
}

TEST_CASE("a run of captured steps is the run of kernels one by one, over validations and checkpoints",
          "[train][gpu][resume]") {
  if (!has_gpu()) return;
  Config config = small_run();
  config.device = DeviceType::kCuda;
  std::tie(config.precision.recipe, config.train.micro_batch) =
      GENERATE(std::tuple(Recipe::kBf16, int64_t(4)), std::tuple(Recipe::kFp8Block, int64_t(2)));
  CAPTURE(name_of(config.precision.recipe));
  struct Steps {
    std::vector<double> losses, norms;
    std::vector<std::vector<double>> shares;
    void add(const StepRecord& record) {
      losses.push_back(record.loss), norms.push_back(record.grad_norm);
      for (const auto& of_layer : record.experts) shares.push_back(of_layer.share);
    }
  };
  const auto run = [&](CudaGraph cuda_graph, FaultFileSystem& files, Steps& steps) {
    config.train.cuda_graph = cuda_graph;
    config.train.log_every_steps = 1;
    write_dataset(files);
    Trainer trainer(config, {}, "run", files, real_clock());
    trainer.resume();
    for (int step = 0; step < 3; ++step) steps.add(trainer.train_step());
    steps.losses.push_back(trainer.evaluate());
    trainer.save();
    for (int step = 0; step < 2; ++step) steps.add(trainer.train_step());
    CHECK(trainer.graph_launches() == (cuda_graph == CudaGraph::kAuto ? 4 : 0));
  };
  FaultFileSystem captured_files, plain_files;
  Steps captured, plain, resumed;
  run(CudaGraph::kAuto, captured_files, captured);
  run(CudaGraph::kOff, plain_files, plain);
  CHECK(captured.losses == plain.losses);
  CHECK(captured.norms == plain.norms);
  CHECK(captured.shares == plain.shares);
  CHECK(std::set<std::vector<double>>(plain.shares.begin(), plain.shares.end()).size() > 1);
  CHECK(saved_tensors(captured_files) == saved_tensors(plain_files));

  config.train.cuda_graph = CudaGraph::kAuto;
  captured_files.restart();
  Trainer trainer(config, {}, "run", captured_files, real_clock());
  REQUIRE(trainer.resume() == 3);
  for (int step = 0; step < 2; ++step) resumed.add(trainer.train_step());
  CHECK(resumed.losses == std::vector<double>(plain.losses.end() - 2, plain.losses.end()));
  CHECK(resumed.norms == std::vector<double>(plain.norms.end() - 2, plain.norms.end()));
}

TEST_CASE("a profile times the kernels of a GPU without a wait in the step", "[train][gpu]") {
  if (!has_gpu()) return;
  const Config config = step_config(Recipe::kFp8Block);
  Training training(config, kGpu);
  training.step(1);
  kernels::KernelProfile profile(real_clock());
  const int64_t before = gpu::host_waits();
  training.step(2);
  CHECK(gpu::host_waits() - before <= 1);
  int64_t wgrads = 0;
  for (const kernels::KernelProfile::Row& row : profile.rows()) {
    CHECK(row.calls > 0);
    CHECK(row.seconds > 0);
    if (std::string(row.cost.name) != "fp8_grouped_wgrad") continue;
    wgrads = row.calls;
    // Rows of tokens, T, times the elements of the dense layers; of rows of experts, K T: two micro-batches of T = 32.
    const double attention = 64.0 * (64 + 2 * 32) + 64 * 64, dense = 3 * 64.0 * 48, expert = 3 * 64.0 * 32;
    CHECK(row.cost.pair_flops == 2.0 * 2 * 32 * (2 * attention + dense + (1 + 2) * expert));
  }
  CHECK(wgrads == 2 * (2 * 2 + 2 + 4));
}

TEST_CASE("a checkpoint goes on on the other device with the bits it has", "[train][gpu][resume]") {
  if (!has_gpu()) return;
  Config config = small_run();
  config.precision.recipe = Recipe::kFp8Block;
  config.precision.emulation = Fp8Arithmetic::kHopper;
  config.train.log_every_steps = 2;
  const DeviceType first = GENERATE(DeviceType::kCpu, DeviceType::kCuda);
  const DeviceType second = first == DeviceType::kCpu ? DeviceType::kCuda : DeviceType::kCpu;
  CAPTURE(name_of(config.precision.recipe), name_of(first));
  FaultFileSystem files;
  write_dataset(files);
  config.device = first;
  Trainer before(config, {}, "run", files, real_clock());
  before.resume();
  for (int step = 0; step < 3; ++step) before.train_step();
  before.save();

  FaultFileSystem copied = files;
  copied.restart();
  config.device = second;
  Trainer after(config, {}, "run", copied, real_clock());
  REQUIRE(after.resume() == 3);
  const std::map<std::string, std::vector<char>> saved = saved_tensors(copied);
  copied.remove_tree("run/checkpoints");
  after.save();
  CHECK(saved.size() > 50);
  CHECK(saved_tensors(copied) == saved);
  std::vector<double> losses, norms, wanted_losses, wanted_norms;
  for (int step = 0; step < 3; ++step) {
    const int64_t waits = gpu::host_waits();
    const StepRecord there = after.train_step(), here = before.train_step();
    // The step's own, and where FP8 counts are logged, which the update adds to, one for them.
    const bool has_counts = !there.fp8.empty();
    CHECK(has_counts ==
          (config.precision.recipe == Recipe::kFp8Block && there.step % config.train.log_every_steps == 0));
    // A capture, in the second step of its kind, begins with a wait.
    const bool is_captured = step == (first == DeviceType::kCuda ? 1 : 2);
    CHECK(gpu::host_waits() - waits <= (has_counts ? 2 : 1) + (is_captured ? 1 : 0));
    losses.push_back(there.loss), norms.push_back(there.grad_norm);
    wanted_losses.push_back(here.loss), wanted_norms.push_back(here.grad_norm);
  }
  check_near(losses, wanted_losses, loss_bound(config.precision.recipe));
  check_near(norms, wanted_norms, 4 * loss_bound(config.precision.recipe));
  CHECK(after.evaluate() == Approx(before.evaluate()).epsilon(loss_bound(config.precision.recipe)));
}

TEST_CASE("ranks on GPUs are one rank, bit for bit", "[train][gpu][layout]") {
  if (!has_gpu()) return;
  Config config = step_config(GENERATE(Recipe::kBf16, Recipe::kFp8Block));
  config.device = DeviceType::kCuda;
  config.parallel.dp = 2;
  config.train.micro_batch = 1;
  CAPTURE(name_of(config.precision.recipe));
  LayoutResult result;
  const auto errors =
      run_local_ranks(2, {.communicator = {}, .seed = 3, .max_delay_us = 50, .faults = {}}, [&](Communicator& world) {
        const LayoutResult mine = verify_layout(config, 2, world);
        if (world.rank() == 0) result = mine;
      });
  rethrow_first(errors);
  INFO(result.first_difference);
  CHECK(result.is_equal());
  CHECK(result.tensors > 30);
}

// In a process of its own, which an emulated GPU has little memory in.
TEST_CASE("a step on a small GPU", "[.small_gpu]") {
  const auto report = [](const Error& error) {
    std::printf("%d: %s at %s\n", error.code(), error.report().what.c_str(), error.report().where.c_str());
  };
  REQUIRE(has_gpu());
  try {
    Training training(step_config(Recipe::kFp8Block), kGpu);
    training.step(1);
    std::printf("trained\n");
  } catch (const Error& error) {
    report(error);
  }
  // And a kernel that finds nothing left for what it computes in between.
  const auto row_of = zeros({64, 2}, DType::kInt32, MemoryCategory::kWorkspace, kGpu);
  const Tensor indices = zeros({64, 2}, DType::kInt32, MemoryCategory::kWorkspace, kGpu);
  const Tensor offsets = zeros({5}, DType::kInt64, MemoryCategory::kWorkspace, kGpu),
               source = zeros({128}, DType::kInt32, MemoryCategory::kWorkspace, kGpu);
  std::vector<Tensor> all;
  try {
    for (int64_t bytes = int64_t(1) << 30; bytes > 0; bytes /= 2) {
      try {
        for (;;) all.emplace_back(Shape{bytes}, DType::kUInt8, MemoryCategory::kGradients, kGpu);
      } catch (const Error&) {
      }
    }
    kernels::build_permutation({.indices = indices, .offsets = offsets, .row_of = row_of, .source = source},
                               indices.stream());
  } catch (const Error& error) {
    report(error);
  }
}

TEST_CASE("a GPU without memory left names what was wanted and who holds it", "[train][gpu][allocator]") {
  if (!has_gpu() || !gpu::runtime().is_emulated) return;
  const auto words_at = [](int mebibytes) {
    std::array<char, 4096> path{};
    REQUIRE(::readlink("/proc/self/exe", path.data(), path.size() - 1) > 0);
    const std::string command =
        fmt::format("OCTET_EMULATED_GPU_MIB={} '{}' '[.small_gpu]' 2>&1", mebibytes, path.data());
    FILE* pipe = ::popen(command.c_str(), "r");
    REQUIRE(pipe != nullptr);
    std::string words;
    for (int letter = 0; (letter = std::fgetc(pipe)) != EOF;) words += char(letter);
    CHECK(::pclose(pipe) == 0);
    return words;
  };
  const std::string small = words_at(1);
  CHECK_THAT(small, Catch::Contains("9: out of memory: ") && Catch::Contains(" MiB more for ") &&
                        Catch::Contains("at cuda:0, in use: ") && Catch::Contains("of 1.0 MiB are free"));
  CHECK_THAT(small, !Catch::Contains("trained\n"));
  const std::string words = words_at(64);
  CHECK_THAT(words, Catch::Contains("trained\n"));
  CHECK_THAT(words, Catch::Contains("9: out of memory: 0.0 MiB more for intermediate results of build_permutation at "
                                    "cuda:0, in use: gradients 6"));
}

}  // namespace octet::test
