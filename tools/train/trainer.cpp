#include "tools/train/trainer.h"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <sstream>

#include "core/base/log.h"
#include "kernels/elementwise.h"
#include "kernels/peak.h"
#include "optim/lr_schedule.h"
#include "parallel/agreement.h"
#include "parallel/self_communicator.h"
#include "tools/train/device.h"
#include "tools/train/faster_products.h"
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

void sum_over_ranks(Fp8Counts& counts, Communicator& world) {
  kernels::QuantizeStats* const all[] = {&counts.weight, &counts.activation, &counts.grad_output,
                                         &counts.wgrad_activation, &counts.wgrad_grad};
  std::vector<double> sums;  // whole numbers below 2^53
  for (const auto* stats : all) {
    for (const int64_t count : {stats->count, stats->flushed, stats->saturated, stats->non_finite}) {
      sums.push_back(double(count));
    }
  }
  sums.push_back(double(counts.swiglu.count)), sums.push_back(double(counts.swiglu.clamped));
  world.all_reduce(sums);
  auto next = sums.begin();
  for (auto* stats : all) {
    for (int64_t* count : {&stats->count, &stats->flushed, &stats->saturated, &stats->non_finite}) {
      *count = int64_t(*next++);
    }
  }
  counts.swiglu = {.count = int64_t(next[0]), .clamped = int64_t(next[1])};
}

// "; 4 ranks (ep 2) wrote it, 2 (ep 1) go on", where the layouts differ.
std::string layout_change(const CheckpointReader& reader, const Config& config) {
  const JsonSource source{.kind = ErrorKind::kCheckpoint, .file = join_path(reader.path(), kManifestName)};
  const JsonCursor layout(reader.info().layout, source);
  const int64_t dp = layout["dp"].as_int64(1), ep = layout["ep"].as_int64(1);
  if (dp == config.parallel.dp && ep == config.parallel.ep) return "";
  return fmt::format("; {} (ep {}) wrote it, {} (ep {}) go on", dp == 1 ? "1 rank" : fmt::format("{} ranks", dp), ep,
                     config.parallel.dp, config.parallel.ep);
}

// " but o_proj, experts in bf16", where some layers of the model are.
std::string in_bf16(const Config& config) {
  std::string names;
  for (const TimedLayer& layer : timed_layers(config)) {
    if (format_of(config.precision.products, layer.products) == LayerFormat::kFp8) continue;
    names += fmt::format("{}{}", names.empty() ? " but " : ", ", layer.products.name);
  }
  return names.empty() ? "" : names + " in bf16";
}

// Every rank writes shards of its own: one that cannot is found before there is anything to lose.
void require_writable(FileSystem& files, const std::string& directory, Communicator& world) {
  if (world.size() == 1) return;
  all_or_none(world, [&] {
    // A leftover of this name is removed by the next start.
    const std::string path = join_path(directory, fmt::format(".trash-writes-{}", world.rank()));
    if (files.exists(path)) files.remove_file(path);
    files.create(path);
    files.remove_file(path);
  });
}

// A path may be another disk on each host.
void require_same_tokens(const TokenDataset& data, const std::string& path, Communicator& world) {
  const std::vector<std::string> digests = gather_texts(world, data.digest());
  for (int rank = 1; rank < world.size(); ++rank) {
    if (digests[size_t(rank)] == digests[0]) continue;
    fail_together(
        world, Error(ErrorKind::kData,
                     {.what = fmt::format("rank {} has other tokens than rank 0", rank),
                      .where = fmt::format("{} on host {}, rank 0 on host {}", path, world.host(rank), world.host(0)),
                      .why = "the samples of a step would not be those of one dataset",
                      .fix = "copy the same prepared data to every host, or put it on a disk that all see"}));
  }
}

}  // namespace

Trainer::Trainer(const Config& config, const Origins& origins, std::string run_dir, FileSystem& files, Clock& clock,
                 Communicator* world)
    : config_(config),
      origins_(origins),
      run_dir_(std::move(run_dir)),
      clock_(clock),
      device_(open_device(config.device)),
      alone_(world == nullptr ? make_self_communicator() : nullptr),
      of_gpus_(make_gpu_communicator(world, device_, config.parallel)),
      timed_(of_gpus_           ? *of_gpus_
             : world == nullptr ? *alone_
                                : *world,
             clock),
      world_(timed_),
      files_(files, world_) {
  const std::string& data = config_.data.path;
  world_.set_phase("start");
  all_or_none(world_, [&] {
    train_data_ = std::make_unique<TokenDataset>(files_, data, Split::kTrain);
    tokenizer_ = std::make_unique<Tokenizer>(load_dataset_tokenizer(files_, data));
  });
  require_same_tokens(*train_data_, data, world_);
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
  decide_product_formats();
  const int64_t sample_length = int64_t(config_.train.sample_prompt.size()) + 1 + config_.train.sample_tokens;
  ranks_.emplace(world_, config_.parallel, model, device_);
  model_ =
      std::make_unique<Transformer>(model, config_.precision, recompute_parts(config_.train),
                                    std::max(config_.data.seq_len, sample_length), ranks_->make_dispatcher(), device_);
  model_->context().swiglu_in_gemm = swiglu_in_gemm_;
  shards_ = ranks_->shard(*model_);
  optimizer_ = std::make_unique<AdamW>(model_->parameters(), config_.optim, moments_dtype(config_.precision), &world_);
  fp8_tally_.emplace(device_);
  tokens_.emplace(plan_step(config_, world_.rank()), device_);
  losses_.emplace(plan_step(config_, world_.rank()), device_);
  graph_.emplace(device_, config_.train.cuda_graph, world_.size());
  flops_per_token_ = training_flops_per_token(config_.model, model.vocab_size, config_.data.seq_len);
  all_or_none(world_, [&] { files_.make_directories(run_dir_); });
}

Trainer::~Trainer() = default;

void Trainer::decide_product_formats() {
  LayerFormats& formats = config_.precision.products.layers;
  constexpr size_t kLayers = std::size(kProductLayers);
  double decided[kLayers + 3] = {};  // formats, and the forms of feed-forward layers
  world_.set_phase("products");
  all_or_none(world_, [&] {
    if (!is_first()) return;
    const DecidedProducts found = decide_products(
        config_, formats_of_run(files_, join_path(run_dir_, "checkpoints")), device_, is_swiglu_form_open(device_),
        files_, product_times_file(), [&](const TimedLayer& layer, TimedForm form) {
          return time_layer(layer, form, config_.precision, device_, [this] { world_.progress(); });
        });
    if (!found.times.empty()) {
      for (const std::string& line : table_of(found.times, found.formats)) log_info("{}", line);
    }
    decided[kLayers] = found.swiglu_in_gemm.dense;
    decided[kLayers + 1] = found.swiglu_in_gemm.shared_experts;
    decided[kLayers + 2] = found.swiglu_in_gemm.experts;
    for (size_t i = 0; i < kLayers; ++i) decided[i] = double(found.formats.layers.*kProductLayers[i].format);
  });
  world_.all_reduce(decided);
  swiglu_in_gemm_ = {.dense = decided[kLayers] != 0,
                     .shared_experts = decided[kLayers + 1] != 0,
                     .experts = decided[kLayers + 2] != 0};
  for (size_t i = 0; i < kLayers; ++i) {
    LayerFormat& format = formats.*kProductLayers[i].format;
    const auto found = LayerFormat(int(decided[i]));
    if (format == found) continue;
    format = found;
    origins_[fmt::format("precision.products.layers.{}", kProductLayers[i].name)] = "decided at the start";
  }
}

StepRanks Trainer::step_ranks() const { return {.world = &world_, .shards = shards_.get()}; }

int64_t Trainer::resume() {
  const std::string checkpoints = join_path(run_dir_, "checkpoints");
  world_.set_phase("resume");
  require_shared_directory(files_, checkpoints, world_);
  all_or_none(world_, [&] {
    if (is_first()) clean_up_checkpoints(files_, checkpoints);
  });
  require_writable(files_, checkpoints, world_);
  if (const auto newest = find_newest_good_checkpoint(files_, checkpoints, world_)) {
    std::optional<CheckpointReader> reader;
    all_or_none(world_, [&] {
      reader.emplace(files_, newest->path);
      require_same_run(*reader, config_, train_data_->digest());
    });
    state_ = load_run_state(*reader, *model_, *optimizer_, world_);
    saved_step_ = state_.step;
    log_info("going on after step {} from {}{}", state_.step, newest->path, layout_change(*reader, config_));
  } else {
    std::string run_id = new_run_id(clock_);
    broadcast_text(world_, run_id);
    state_ = {.run_id = run_id,
              .step = 0,
              .tokens = 0,
              .cursor = train_loader_->order().cursor(0),
              .data_digest = train_data_->digest()};
    model_->init_weights(uint64_t(config_.train.seed));
  }
  shards_->gather_weights();
  all_or_none(world_, [&] {
    if (!is_first()) return;
    metrics_ = std::make_unique<MetricsWriter>(files_, join_path(run_dir_, "metrics.jsonl"), state_.step);
    files_.sync_directory(run_dir_);
    keep_samples_until(files_, join_path(run_dir_, "samples.txt"), state_.step);
    files_.write_atomically(join_path(run_dir_, "config.yaml"), print_config(config_, &origins_));
  });
  return state_.step;
}

StepRecord Trainer::train_step() {
  const int64_t step = state_.step + 1;
  const TrainConfig& train = config_.train;
  const bool measure = step == 1 || at_interval(step, train.log_every_steps);
  Fp8Counts* const counts = measure && counts_numbers() ? fp8_tally_->counts() : nullptr;
  model_->context().numerics.health = counts;
  const int64_t started_ns = clock_.monotonic_ns();
  const double waited_before_s = timed_.seconds_waited();

  const StepPlan plan = plan_step(config_, world_.rank());
  const int64_t tokens = plan.tokens();
  const double lr = learning_rate(config_.optim, step, train.steps);
  world_.set_phase(fmt::format("step {}, gradients", step));
  tokens_->fill(
      [&](int64_t m) { return train_loader_->fetch(state_.cursor.sample + m * plan.sequences, plan.sequences); });
  optimizer_->prepare(step, lr);
  const auto sum = [&] {
    world_.set_phase(fmt::format("step {}, update", step));
    return sum_step(*model_, *optimizer_, plan, *losses_, step_ranks(), StopSignal::asked());
  };
  StepSums sums;
  if (world_.size() > 1) {
    run_micro_batches(
        *model_, plan, [this](int64_t m) { return tokens_->of(m); }, *losses_, step_ranks());
    optimizer_->measure();
    sums = sum();
    if (sums.is_finite()) apply_update(*model_, *optimizer_, *losses_, counts, step_ranks());
  } else {
    // The device decides by itself: the host has asked for all of the step before it waits.
    ask_for_step(*graph_, *model_, *optimizer_, plan, *tokens_, *losses_, counts, step_ranks());
    sums = sum();
  }
  model_->context().numerics.health = nullptr;  // what follows, a validation say, is not of the step
  asks_to_stop_ = sums.asks_to_stop;
  for (const WgradTiles::Fallback& fallback : sums.fallbacks) {
    log_warning(
        "step {}: of {}, {:.2f} % of the codes of {} are lost in tiles, more than the {:.2f} % of "
        "precision.wgrad_underflow_limit; its gradient takes columns from step {} on",
        step, fallback.weight, 100 * fallback.lost, fallback.is_of_grad ? "the output's gradient" : "the input",
        100 * model_->wgrad_tiles()->limit(), step + 1);
  }
  StepRecord record{
      .step = step, .tokens = state_.tokens + tokens, .loss = sums.loss, .lr = lr, .grad_norm = sums.grad_norm};
  if (!model_->routers().empty()) record.aux_loss = sums.balance_loss, record.z_loss = sums.z_loss;
  if (measure) add_router_metrics(record, sums.loads);
  if (!sums.is_finite()) {
    if (train.on_non_finite == OnNonFinite::kStop || skipped_in_a_row_ + 1 >= kMostSkippedInARow) {
      refuse_non_finite(record.loss);
    }
    ++skipped_in_a_row_;
    record.skipped = true;
    log_warning("step {}: {}; the step is left out ({} in a row)", step, first_non_finite(record.loss),
                skipped_in_a_row_);
    optimizer_->clear_gradients();
  } else {
    skipped_in_a_row_ = 0;
  }
  state_.step = step;
  state_.tokens += tokens;
  state_.cursor = train_loader_->order().cursor(state_.cursor.sample + train.batch_size);

  record.step_seconds = double(clock_.monotonic_ns() - started_ns) * 1e-9;
  record.tokens_per_second = double(tokens) / record.step_seconds;
  if (peak_flops_ > 0) {
    record.sol_percent =
        100.0 * record.tokens_per_second * flops_per_token_ / (peak_flops_ * double(config_.parallel.dp));
  }
  watch_ranks(record, measure, timed_.seconds_waited() - waited_before_s);
  if (measure) add_machine_metrics(record);
  return record;
}

void Trainer::watch_ranks(StepRecord& record, bool is_interval_over, double seconds_waited) {
  if (world_.size() == 1) return;
  worked_s_ += record.step_seconds - seconds_waited, interval_s_ += record.step_seconds;
  if (!is_interval_over) return;
  std::vector<double> worked_s(size_t(world_.size()), 0.0);
  worked_s[size_t(world_.rank())] = worked_s_;
  world_.all_reduce(worked_s);
  const std::optional<SlowRank> slow = slow_ranks_.add(worked_s, interval_s_);
  if (slow) record.slow_rank = {.rank = slow->rank, .host = world_.host(slow->rank), .percent = slow->percent};
  if (slow && slow->rank != told_slow_rank_) {
    log_warning(
        "rank {} (host {}) is slower than the others: they waited for it in {:.0f} % of the last {:.0f} s; see what "
        "else its host does (top), and whether its cores are hot or throttled",
        slow->rank, world_.host(slow->rank), slow->percent, slow->seconds);
  }
  told_slow_rank_ = slow ? slow->rank : -1;
  worked_s_ = interval_s_ = 0;
}

void Trainer::add_router_metrics(StepRecord& record, const std::vector<std::vector<int64_t>>& loads) const {
  for (size_t i = 0; i < loads.size(); ++i) {
    const std::vector<int64_t>& load = loads[i];
    const LoadStats stats = load_stats(load);
    record.experts.push_back({.layer = config_.model.dense_layers + int64_t(i),
                              .max_violation = stats.max_violation,
                              .entropy = stats.entropy,
                              .entropy_ratio = stats.entropy_ratio,
                              .dead_experts = stats.dead_experts,
                              .share = load_share(load)});
  }
}

bool Trainer::counts_numbers() const {
  return model_->context().numerics.is_fp8() || model_->context().swiglu_limit > 0;
}

void Trainer::add_machine_metrics(StepRecord& record) {
  if (counts_numbers()) {
    const WgradTiles* const tiles = model_->wgrad_tiles();
    const WgradTiles::Reading lost = tiles == nullptr ? WgradTiles::Reading() : tiles->read();
    Fp8Counts counts = fp8_tally_->take();
    if (tiles != nullptr) lost.add_to(counts.wgrad_grad, counts.wgrad_activation);
    sum_over_ranks(counts, world_);
    if (model_->context().numerics.is_fp8()) {
      record.fp8 = {health_of("weight", counts.weight), health_of("activation", counts.activation),
                    health_of("grad_output", counts.grad_output),
                    health_of("wgrad_activation", counts.wgrad_activation), health_of("wgrad_grad", counts.wgrad_grad)};
    }
    if (counts.swiglu.count > 0) {
      record.swiglu_clamped_percent = 100 * double(counts.swiglu.clamped) / double(counts.swiglu.count);
    }
  }
  const MemoryUse use = memory_use(device_);
  for (int c = 0; c < kMemoryCategories; ++c) {
    record.memory_bytes.emplace_back(name_of(MemoryCategory(c)), use.peak_bytes[size_t(c)]);
  }
}

double Trainer::evaluate() {
  const int64_t available = val_loader_->order().samples_per_epoch();
  const int64_t wanted = std::min(available, config_.train.eval_batches * config_.train.batch_size);
  const int64_t sequences = config_.sequences_per_micro_batch(), passes = (wanted + sequences - 1) / sequences;
  // Pass by pass in turn over ranks; all make as many, the last perhaps of no tokens, since tokens visit all ranks.
  std::vector<double> sums(size_t(2 * passes), 0.0);  // of each pass, then its tokens
  for (int64_t pass = world_.rank(); pass < passes + world_.rank(); pass += world_.size()) {
    const int64_t first = std::min(pass * sequences, wanted), count = std::min(sequences, wanted - first);
    const Batch batch = count > 0 ? val_loader_->fetch(first, count) : Batch{};
    const int64_t T = count * config_.data.seq_len;
    world_.progress();  // experts on one rank make no collective here
    const auto loss = model_->evaluate(from_vector(batch.inputs, {T}, device_),
                                       from_vector(batch.targets, {T}, device_), std::max<int64_t>(count, 1));
    if (count == 0) continue;
    sums[size_t(pass)] = loss.sum;
    sums[size_t(passes + pass)] = double(loss.tokens);
  }
  world_.all_reduce(sums);
  const auto tokens = sums.begin() + passes;
  return std::accumulate(sums.begin(), tokens, 0.0) / std::accumulate(tokens, sums.end(), 0.0);
}

std::string Trainer::first_non_finite(double loss) {
  if (!std::isfinite(loss)) return fmt::format("the loss is {}", loss);
  // Of each rank, the first tensor of the model with bad numbers in its own rows: "place count numbers name". A tensor
  // may lie on several ranks.
  std::string mine;
  const std::vector<Parameter*> parameters = model_->parameters();
  for (size_t i = 0; i < parameters.size() && mine.empty(); ++i) {
    Parameter& parameter = *parameters[i];
    const int64_t cols = parameter.shape().cols();
    for (const WeightPiece& piece : parameter.pieces()) {
      const int64_t begin = std::max(piece.first_row, parameter.own().first);
      const int64_t end = std::min(piece.first_row + piece.rows, parameter.own().end());
      if (begin >= end) continue;
      // As the update found it, which may have cleared it since.
      const Tensor whole = parameter.grad_target().grad;
      const Tensor grad = whole.reshape({parameter.num_rows(), cols}).slice_rows(begin, end - begin);
      const Tensor counted = zeros({1}, DType::kInt64, MemoryCategory::kWorkspace, device_);
      kernels::count_non_finite({.x = grad, .count = counted.view().data<int64_t>()}, grad.stream());
      const int64_t count = to_vector<int64_t>(counted)[0];
      if (count == 0) continue;
      const int64_t row = parameter.cut().first * parameter.rows_of_matrix() + piece.first_row;
      mine = fmt::format("{:06}.{:012} {} {} {}", i, row, count, piece.rows * cols, piece.name);
      break;
    }
  }
  std::string place, name;
  int64_t bad = 0, numbers = 0;
  for (const std::string& found : gather_texts(world_, mine)) {
    if (found.empty()) continue;
    std::istringstream text(found);
    std::string at, of;
    int64_t count = 0, all = 0;
    text >> at >> count >> all >> of;
    if (!place.empty() && at > place) continue;
    if (at != place) bad = 0;
    place = at, name = of, numbers = all, bad += count;
  }
  if (!place.empty()) {
    return fmt::format("the gradient of {} has {} numbers of {} that are not finite", name, bad, numbers);
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
  world_.set_phase(fmt::format("step {}, save", state_.step));
  all_or_none(world_, [this] {
    if (is_first()) metrics_->sync();
  });
  save_run_state(files_, join_path(run_dir_, "checkpoints"), state_, config_, *tokenizer_, *model_, *optimizer_,
                 world_);
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
  // All ranks generate the same, since a token may visit the experts of any of them.
  world_.set_phase(fmt::format("step {}, sample", state_.step));
  std::string text = sample_header(state_.step) + config_.train.sample_prompt;
  generate(*model_, *tokenizer_,
           {.prompt = config_.train.sample_prompt,
            .tokens = config_.train.sample_tokens,
            .sampling = {.temperature = 0.8f, .top_p = 0.95f},
            .seed = uint64_t(config_.train.seed)},
           [this, &text](std::string_view piece) {
             text += piece;
             world_.progress();
           });
  text += "\n\n";
  if (is_first()) files_.append_to(join_path(run_dir_, "samples.txt"))->append(text.data(), text.size());
}

void Trainer::validate_into(StepRecord& record) {
  world_.set_phase(fmt::format("step {}, validation", state_.step));
  const SplitInfo& info = val_data_->info();
  record.val_loss = evaluate();
  record.bits_per_byte = info.bits_per_byte(*record.val_loss);
  record.unigram_entropy = info.unigram_nats_per_token;
  last_with_validation_ = record;
}

// Of the run's last steps before this process, for the first guess of the time left; 0 for a new run.
double Trainer::seconds_per_step_before() {
  double sum = 0;
  int64_t count = 0;
  const std::string path = join_path(run_dir_, "metrics.jsonl");
  if (!is_first() || !files_.exists(path)) return 0;
  MetricsReader reader(files_, path);
  for (StepRecord record; reader.next(record);) {
    world_.progress();
    if (record.step > state_.step - 20) sum += record.step_seconds, ++count;
  }
  return count == 0 ? 0 : sum / double(count);
}

void Trainer::print_start() const {
  const ParameterCounts counts = count_parameters(config_.model, model_->config().vocab_size);
  log_info("model: {} parameters, {} active per token; {}{}", format_count(double(counts.total())),
           format_count(double(counts.active())), name_of(config_.precision.recipe),
           model_->context().numerics.is_fp8()
               ? fmt::format("{}, {} arithmetic", in_bf16(config_), name_of(model_->context().numerics.emulation))
               : "");
  log_info("data: {} tokens, {} in a step; machine: {}{}", format_thousands(train_data_->num_tokens()),
           format_thousands(config_.train.batch_size * config_.data.seq_len), describe(device_),
           peak_flops_ > 0 ? fmt::format(", {:.0f} GFLOP/s at most", peak_flops_ * 1e-9) : "");
  if (world_.size() > 1) {
    log_info("ranks: {}, {} with the same experts; {} on a node{}", world_.size(), ranks_->experts().size(),
             ranks_->mesh().shape.ranks_per_node, ranks_->is_two_stage() ? ", dispatch in two stages" : "");
  }
}

void Trainer::print_end(int64_t first_step) const {
  const bool done = state_.step == config_.train.steps;
  std::string text = done ? fmt::format("done: {} steps", state_.step)
                          : fmt::format("stopped by {} after step {} of {}; the same command goes on from there",
                                        StopSignal::asked() ? StopSignal::name() : "a signal to another rank",
                                        state_.step, config_.train.steps);
  if (done && first_step == state_.step) text += ", all of them before; raise train.steps to go on";
  text += fmt::format(", {} tokens\n", format_thousands(state_.tokens));
  if (last_) text += fmt::format("  training loss    {:.4f}\n", last_->loss);
  if (last_with_validation_) {
    text += fmt::format("  validation loss  {:.4f} nats/token, {:.3f} bits/byte (unigram entropy {:.4f})\n",
                        *last_with_validation_->val_loss, *last_with_validation_->bits_per_byte,
                        *last_with_validation_->unigram_entropy);
  }
  const MemoryUse use = memory_use(device_);
  text += fmt::format("  peak of tensors  {}\n", format_bytes(use.peak_total_bytes));
  text += fmt::format("  checkpoint       {}\n",
                      join_path(join_path(run_dir_, "checkpoints"), checkpoint_name(saved_step_)));
  text += fmt::format("  report           {}\n", join_path(run_dir_, "report.html"));
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

bool Trainer::is_stopped() {
  double asked = StopSignal::asked() ? 1 : 0;  // on any rank: then all stop after the same step
  world_.all_reduce({&asked, 1});
  return asked > 0;
}

int Trainer::run() {
  std::optional<RunLock> lock;
  all_or_none(world_, [&] {
    if (is_first()) lock.emplace(files_, run_dir_, clock_);
  });
  const StopSignal signals;
  const int64_t first = resume();
  if (device_.is_cpu()) {
    peak_flops_ = kernels::measure_peak_flops(
        config_.precision.recipe == Recipe::kFp32 ? kernels::Arithmetic::kFloat32 : kernels::Arithmetic::kBFloat16Pairs,
        default_stream(), clock_);
  }
  print_start();
  std::optional<Progress> progress;
  if (is_first()) {
    progress.emplace(ProgressOptions{.total_steps = config_.train.steps,
                                     .first_step = first,
                                     .seconds_per_step_hint = seconds_per_step_before(),
                                     .plain_every_steps = config_.train.log_every_steps},
                     clock_);
  }
  asks_to_stop_ = is_stopped();
  while (state_.step < config_.train.steps && !asks_to_stop_) {
    StepRecord record = train_step();
    const bool is_last = state_.step == config_.train.steps;
    if (val_loader_ && (is_last || at_interval(state_.step, config_.train.eval_every_steps))) validate_into(record);
    if (is_first()) {
      metrics_->append(record);
      progress->update(record);
    }
    last_ = record;
    const int64_t sample_every = config_.train.sample_every_steps;
    const bool has_sample = sample_every > 0 && (is_last || at_interval(state_.step, sample_every));
    if (has_sample) {
      unless_storage_fails("the sample", [this] { write_sample(); });
    }
    const bool saves = at_interval(state_.step, config_.checkpoint.every_steps) && !is_last;
    if (saves) try_save();
    // These may have taken as long as many steps.
    if (record.val_loss || has_sample || saves) asks_to_stop_ = is_stopped() || asks_to_stop_;
  }
  if (progress) progress->finish();
  if (saved_step_ != state_.step) save();  // this one must succeed
  if (is_first()) {
    unless_storage_fails("the report", [this] { write_report(files_, run_dir_); });
    print_end(first);
  }
  return state_.step < config_.train.steps ? kExitSavedAndRequeue : 0;
}

}  // namespace octet
