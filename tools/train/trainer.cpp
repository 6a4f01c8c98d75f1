#include "tools/train/trainer.h"

#include <charconv>
#include <cmath>
#include <cstdio>

#include "core/base/isa.h"
#include "core/base/log.h"
#include "kernels/elementwise.h"
#include "kernels/peak.h"
#include "optim/lr_schedule.h"
#include "tools/train/generate.h"
#include "tools/train/model_stats.h"
#include "tools/train/progress.h"
#include "tools/train/report.h"
#include "tools/train/run_lock.h"
#include "tools/train/stop_signal.h"
#include "tools/train/training_step.h"

namespace octet {
namespace {

// A step whose numbers are not finite may be left out (train.on_non_finite: skip), but not for ever.
constexpr int64_t kMostSkippedInARow = 10;

Fp8Health health_of(const char* role, const kernels::QuantizeStats& stats) {
  const auto percent = [&stats](int64_t part) {
    return stats.count == 0 ? 0.0 : 100.0 * double(part) / double(stats.count);
  };
  return {.role = role,
          .flushed_percent = percent(stats.flushed),
          .saturated_percent = percent(stats.saturated),
          .non_finite = stats.non_finite};
}

// samples.txt is a run of these, each followed by its text.
constexpr std::string_view kSampleMark = "=== step ";
std::string sample_header(int64_t step) { return fmt::format("{}{} ===\n", kSampleMark, step); }

// Drops the samples of steps that a resumed run will do again.
void keep_samples_until(FileSystem& files, const std::string& path, int64_t step) {
  if (!files.exists(path)) return;
  const std::string text = files.read_text(path);
  for (size_t at = text.find(kSampleMark); at != std::string::npos; at = text.find(kSampleMark, at + 1)) {
    int64_t of = 0;
    const char* digits = text.data() + at + kSampleMark.size();
    std::from_chars(digits, text.data() + text.size(), of);
    if (of > step && (at == 0 || text[at - 1] == '\n')) {
      files.write_atomically(path, std::string_view(text).substr(0, at));
      return;
    }
  }
}

// Runs what a run can do without; a disk that refuses is told, and training goes on.
template <class Write>
void unless_storage_fails(const char* what, Write&& write) {
  try {
    write();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kStorage) throw;
    log_warning("{} was not written: {}", what, error.what());
  }
}

bool at_interval(int64_t step, int64_t every) { return every > 0 && step % every == 0; }

}  // namespace

Trainer::Trainer(const Config& config, const Origins& origins, std::string run_dir, FileSystem& files, Clock& clock)
    : config_(config), origins_(origins), run_dir_(std::move(run_dir)), files_(files), clock_(clock) {
  const std::string& data = config_.data.path;
  train_data_ = std::make_unique<TokenDataset>(files_, data, Split::kTrain);
  tokenizer_ = std::make_unique<Tokenizer>(load_dataset_tokenizer(files_, data));
  train_loader_ = std::make_unique<DataLoader>(
      *train_data_, SampleOrder(train_data_->num_tokens(), config_.data.seq_len, uint64_t(config_.train.seed)));
  if (config_.train.eval_every_steps > 0) {
    val_data_ = std::make_unique<TokenDataset>(files_, data, Split::kVal);
    if (val_data_->num_tokens() > config_.data.seq_len) {
      val_loader_ = std::make_unique<DataLoader>(*val_data_,
                                                 SampleOrder::in_order(val_data_->num_tokens(), config_.data.seq_len));
    } else {
      log_warning("the validation split has {} tokens, fewer than one sequence of {}: no validation",
                  val_data_->num_tokens(), config_.data.seq_len);
    }
  }

  ModelConfig model = config_.model;
  if (model.vocab_size == 0) model.vocab_size = train_data_->vocab_size();
  require(ErrorKind::kConfig, model.vocab_size >= train_data_->vocab_size(),
          "model.vocab_size is {}; the tokens of {} go up to {}: wanted at least that, or 0 for just that",
          model.vocab_size, data, train_data_->vocab_size());
  const int64_t sample_length = int64_t(config_.train.sample_prompt.size()) + 1 + config_.train.sample_tokens;
  model_ = std::make_unique<Transformer>(model, config_.precision, recompute_parts(config_.train),
                                         std::max(config_.data.seq_len, sample_length));
  optimizer_ = std::make_unique<AdamW>(model_->parameters(), config_.optim, moments_dtype(config_.precision));
  flops_per_token_ = training_flops_per_token(config_.model, model.vocab_size, config_.data.seq_len);
  files_.make_directories(run_dir_);
}

Trainer::~Trainer() = default;

int64_t Trainer::resume() {
  const std::string checkpoints = join_path(run_dir_, "checkpoints");
  files_.make_directories(checkpoints);
  clean_up_checkpoints(files_, checkpoints);
  if (const auto newest = find_newest_good_checkpoint(files_, checkpoints)) {
    const CheckpointReader reader(files_, newest->path);
    require_same_run(reader, config_, train_data_->digest());
    state_ = load_run_state(reader, *model_, *optimizer_);
    saved_step_ = state_.step;
    log_info("going on after step {} from {}", state_.step, newest->path);
  } else {
    state_ = {.run_id = new_run_id(clock_),
              .step = 0,
              .tokens = 0,
              .cursor = train_loader_->order().cursor(0),
              .data_digest = train_data_->digest()};
    model_->init_weights(uint64_t(config_.train.seed));
  }
  metrics_ = std::make_unique<MetricsWriter>(files_, join_path(run_dir_, "metrics.jsonl"), state_.step);
  files_.sync_directory(run_dir_);
  keep_samples_until(files_, join_path(run_dir_, "samples.txt"), state_.step);
  files_.write_atomically(join_path(run_dir_, "config.yaml"), print_config(config_, &origins_));
  return state_.step;
}

StepRecord Trainer::train_step() {
  const int64_t step = state_.step + 1;
  const TrainConfig& train = config_.train;
  const bool measure = step == 1 || at_interval(step, train.log_every_steps);
  model_->context().numerics.health = measure ? &fp8_counts_ : nullptr;
  const int64_t started_ns = clock_.monotonic_ns();

  const StepPlan plan = plan_step(config_, 0);
  const int64_t tokens = plan.tokens();
  const double loss = run_micro_batches(*model_, plan, [&](int64_t m) {
    return train_loader_->fetch(state_.cursor.sample + m * plan.sequences, plan.sequences);
  });
  StepRecord record{.step = step,
                    .tokens = state_.tokens + tokens,
                    .loss = loss,
                    .lr = learning_rate(config_.optim, step, train.steps),
                    .grad_norm = optimizer_->gradient_norm()};
  add_router_metrics(record, measure);
  if (!std::isfinite(record.loss) || !std::isfinite(record.grad_norm)) {
    if (train.on_non_finite == OnNonFinite::kStop || skipped_in_a_row_ + 1 >= kMostSkippedInARow) {
      refuse_non_finite(record.loss);
    }
    ++skipped_in_a_row_;
    record.skipped = true;
    log_warning("step {}: {}; the step is left out ({} in a row)", step, first_non_finite(record.loss),
                skipped_in_a_row_);
    optimizer_->clear_gradients();
    for (Router* router : model_->routers()) router->drop_step();
  } else {
    skipped_in_a_row_ = 0;
    apply_update(*model_, *optimizer_, step, record.lr, record.grad_norm, measure ? &fp8_counts_ : nullptr);
  }
  state_.step = step;
  state_.tokens += tokens;
  state_.cursor = train_loader_->order().cursor(state_.cursor.sample + train.batch_size);

  record.step_seconds = double(clock_.monotonic_ns() - started_ns) * 1e-9;
  record.tokens_per_second = double(tokens) / record.step_seconds;
  if (peak_flops_ > 0) record.sol_percent = 100.0 * record.tokens_per_second * flops_per_token_ / peak_flops_;
  if (measure) add_machine_metrics(record);
  return record;
}

void Trainer::add_router_metrics(StepRecord& record, bool with_loads) {
  const std::vector<Router*> routers = model_->routers();
  if (routers.empty()) return;
  record.aux_loss = record.z_loss = 0;
  for (size_t i = 0; i < routers.size(); ++i) {
    *record.aux_loss += double(routers[i]->balance_loss());
    *record.z_loss += double(routers[i]->z_loss());
    if (!with_loads) continue;
    const LoadStats stats = load_stats(routers[i]->load());
    record.experts.push_back({.layer = config_.model.dense_layers + int64_t(i),
                              .max_violation = stats.max_violation,
                              .entropy = stats.entropy,
                              .entropy_ratio = stats.entropy_ratio,
                              .dead_experts = stats.dead_experts,
                              .share = load_share(routers[i]->load())});
  }
}

void Trainer::add_machine_metrics(StepRecord& record) {
  if (model_->context().numerics.is_fp8()) {
    record.fp8 = {health_of("weight", fp8_counts_.weight), health_of("activation", fp8_counts_.activation),
                  health_of("grad_output", fp8_counts_.grad_output),
                  health_of("wgrad_activation", fp8_counts_.wgrad_activation),
                  health_of("wgrad_grad", fp8_counts_.wgrad_grad)};
    fp8_counts_ = {};
  }
  const MemoryUse use = memory_use();
  for (int c = 0; c < kMemoryCategories; ++c) {
    record.memory_bytes.emplace_back(name_of(MemoryCategory(c)), use.peak_bytes[size_t(c)]);
  }
}

double Trainer::evaluate() {
  const int64_t available = val_loader_->order().samples_per_epoch();
  const int64_t wanted = std::min(available, config_.train.eval_batches * config_.train.batch_size);
  double sum = 0;
  int64_t tokens = 0;
  for (int64_t first = 0; first < wanted; first += config_.sequences_per_micro_batch()) {
    const int64_t count = std::min(config_.sequences_per_micro_batch(), wanted - first);
    const Batch batch = val_loader_->fetch(first, count);
    const int64_t T = count * config_.data.seq_len;
    const auto loss = model_->evaluate(from_vector(batch.inputs, {T}), from_vector(batch.targets, {T}), count);
    sum += loss.sum;
    tokens += loss.tokens;
  }
  return sum / double(tokens);
}

std::string Trainer::first_non_finite(double loss) {
  if (!std::isfinite(loss)) return fmt::format("the loss is {}", loss);
  for (Parameter* parameter : model_->parameters()) {
    const int64_t cols = parameter->shape().cols();
    for (const WeightPiece& piece : parameter->pieces()) {
      int64_t count = 0;
      const View grad(parameter->grad().data<float>() + piece.first_row * cols, {piece.rows * cols}, DType::kFloat32);
      kernels::count_non_finite({.x = grad, .count = &count}, parameter->grad().stream());
      if (count > 0) {
        return fmt::format("the gradient of {} has {} numbers of {} that are not finite", piece.name, count,
                           piece.rows * cols);
      }
    }
  }
  return "the gradient norm overflows";
}

void Trainer::refuse_non_finite(double loss) {
  fail(ErrorKind::kNumeric,
       {.what = fmt::format("step {}: {}", state_.step + 1, first_non_finite(loss)),
        .where = fmt::format("{}, samples {} to {}", run_dir_, state_.cursor.sample,
                             state_.cursor.sample + config_.train.batch_size - 1),
        .why = "the update was not applied: weights and checkpoints are as they were before this step",
        .fix = "lower optim.lr, lengthen optim.warmup_steps, or set train.on_non_finite: skip"});
}

void Trainer::save() {
  metrics_->sync();
  save_run_state(files_, join_path(run_dir_, "checkpoints"), state_, config_, *tokenizer_, *model_, *optimizer_);
  saved_step_ = state_.step;
}

void Trainer::try_save() {
  try {
    save();
    failed_saves_ = 0;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kStorage || ++failed_saves_ > config_.checkpoint.max_failed_saves) throw;
    log_warning(
        "saving step {} failed: {}. Training goes on; {} ({} of at most {} failures in a row)", state_.step,
        error.what(),
        saved_step_ < 0 ? "there is no checkpoint yet" : fmt::format("step {} is the last one saved", saved_step_),
        failed_saves_, config_.checkpoint.max_failed_saves);
  }
}

void Trainer::write_sample() {
  std::string text = sample_header(state_.step) + config_.train.sample_prompt;
  generate(*model_, *tokenizer_,
           {.prompt = config_.train.sample_prompt,
            .tokens = config_.train.sample_tokens,
            .sampling = {.temperature = 0.8f, .top_p = 0.95f},
            .seed = uint64_t(config_.train.seed)},
           [&text](std::string_view piece) { text += piece; });
  text += "\n\n";
  files_.append_to(join_path(run_dir_, "samples.txt"))->append(text.data(), text.size());
}

void Trainer::validate_into(StepRecord& record) {
  const SplitInfo& info = val_data_->info();
  record.val_loss = evaluate();
  record.bits_per_byte = info.bits_per_byte(*record.val_loss);
  record.unigram_entropy = info.unigram_nats_per_token;
  last_with_validation_ = record;
}

// Of the run's last steps before this process, for the first guess of the time left; 0 for a new run.
double Trainer::seconds_per_step_before() const {
  double sum = 0;
  int64_t count = 0;
  const std::string path = join_path(run_dir_, "metrics.jsonl");
  if (!files_.exists(path)) return 0;
  MetricsReader reader(files_, path);
  for (StepRecord record; reader.next(record);) {
    if (record.step > state_.step - 20) sum += record.step_seconds, ++count;
  }
  return count == 0 ? 0 : sum / double(count);
}

void Trainer::print_start() const {
  const ParameterCounts counts = count_parameters(config_.model, model_->config().vocab_size);
  log_info(
      "model: {} parameters, {} active per token; {}{}", format_count(double(counts.total())),
      format_count(double(counts.active())), name_of(config_.precision.recipe),
      model_->context().numerics.is_fp8() ? fmt::format(", {} arithmetic", name_of(config_.precision.emulation)) : "");
  log_info("data: {} tokens, {} in a step; machine: {} threads, {} kernels, {:.0f} GFLOP/s at most",
           format_thousands(train_data_->num_tokens()),
           format_thousands(config_.train.batch_size * config_.data.seq_len), default_thread_pool().num_threads(),
           name_of(current_isa()), peak_flops_ * 1e-9);
}

void Trainer::print_end(int64_t first_step) const {
  const bool done = state_.step == config_.train.steps;
  std::string text = done ? fmt::format("done: {} steps", state_.step)
                          : fmt::format("stopped by {} after step {} of {}; the same command goes on from there",
                                        StopSignal::name(), state_.step, config_.train.steps);
  if (done && first_step == state_.step) text += ", all of them before; raise train.steps to go on";
  text += fmt::format(", {} tokens\n", format_thousands(state_.tokens));
  if (last_) text += fmt::format("  training loss    {:.4f}\n", last_->loss);
  if (last_with_validation_) {
    text += fmt::format("  validation loss  {:.4f} nats/token, {:.3f} bits/byte (unigram entropy {:.4f})\n",
                        *last_with_validation_->val_loss, *last_with_validation_->bits_per_byte,
                        *last_with_validation_->unigram_entropy);
  }
  const MemoryUse use = memory_use();
  text += fmt::format("  peak of tensors  {}\n", format_bytes(use.peak_total_bytes));
  text += fmt::format("  checkpoint       {}\n",
                      join_path(join_path(run_dir_, "checkpoints"), checkpoint_name(saved_step_)));
  text += fmt::format("  report           {}\n", join_path(run_dir_, "report.html"));
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

int Trainer::run() {
  const RunLock lock(files_, run_dir_, clock_);
  const int64_t first = resume();
  peak_flops_ = kernels::measure_peak_flops(
      config_.precision.recipe == Recipe::kFp32 ? kernels::Arithmetic::kFloat32 : kernels::Arithmetic::kBFloat16Pairs,
      default_stream(), clock_);
  print_start();
  const StopSignal signals;
  Progress progress({.total_steps = config_.train.steps,
                     .first_step = first,
                     .seconds_per_step_hint = seconds_per_step_before(),
                     .plain_every_steps = config_.train.log_every_steps},
                    clock_);
  while (state_.step < config_.train.steps && !StopSignal::asked()) {
    StepRecord record = train_step();
    const bool is_last = state_.step == config_.train.steps;
    if (val_loader_ && (is_last || at_interval(state_.step, config_.train.eval_every_steps))) validate_into(record);
    metrics_->append(record);
    progress.update(record);
    last_ = record;
    const int64_t sample_every = config_.train.sample_every_steps;
    if (sample_every > 0 && (is_last || at_interval(state_.step, sample_every))) {
      unless_storage_fails("the sample", [this] { write_sample(); });
    }
    if (at_interval(state_.step, config_.checkpoint.every_steps) && !is_last) try_save();
  }
  progress.finish();
  if (saved_step_ != state_.step) save();  // this one must succeed
  unless_storage_fails("the report", [this] { write_report(files_, run_dir_); });
  print_end(first);
  return state_.step < config_.train.steps ? kExitSavedAndRequeue : 0;
}

}  // namespace octet
