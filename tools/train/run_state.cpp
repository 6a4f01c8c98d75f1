#include "tools/train/run_state.h"

#include <ctime>
#include <random>

#include "core/base/log.h"
#include "kernels/elementwise.h"
#include "tools/train/config_keys.h"
#include "tools/train/yaml_reader.h"

namespace octet {
namespace {

constexpr std::string_view kConfigFile = "config.yaml", kTokenizerFile = "tokenizer.json";

std::string bias_name(const Router& router) { return router.prefix() + "e_score_correction_bias"; }
std::string share_name(const Router& router) { return router.prefix() + "last_load_share"; }

// The rows of a piece inside its parameter's tensor `whole`.
View rows_of(const Tensor& whole, const Parameter& parameter, const WeightPiece& piece) {
  const int64_t cols = parameter.shape().cols();
  return View(static_cast<char*>(whole.view().raw()) + piece.first_row * cols * size_of(whole.dtype()),
              parameter.piece_shape(piece), whole.dtype());
}

TensorPiece piece_of(std::string name, TensorGroup group, const View& values) {
  return {.name = std::move(name),
          .group = group,
          .dtype = stored(values.dtype()),
          .shape = values.shape(),
          .data = values.raw(),
          .box = {}};
}

// Reads a tensor of float32 or bfloat16 into memory of either, rounding where it must.
void read_into(const CheckpointReader& reader, const std::string& name, const View& to) {
  const CheckpointReader::Tensor* saved = reader.find(name);
  if (saved == nullptr || saved->shape != to.shape()) {
    fail(ErrorKind::kCheckpoint,
         {.what = saved == nullptr ? fmt::format("tensor {} is missing", name)
                                   : fmt::format("tensor {} is {}; the model wants {}", name, saved->shape, to.shape()),
          .where = reader.path(),
          .why = "the model would be only partly that of the checkpoint",
          .fix = "use the configuration that wrote it: config.yaml in that directory"});
  }
  if (in_memory(saved->dtype) == to.dtype()) {
    reader.read_tensor(name, to.raw());
    return;
  }
  require(ErrorKind::kCheckpoint, saved->dtype == StoredDType::kF32 || saved->dtype == StoredDType::kBF16,
          "{}: tensor {} is {}; wanted F32 or BF16", reader.path(), name, name_of(saved->dtype));
  const Tensor read = empty(to.shape(), *in_memory(saved->dtype), MemoryCategory::kWorkspace);
  reader.read_tensor(name, read.view().raw());
  kernels::cast({.x = read, .y = to}, read.stream());
}

// Masters from `<name>.master` where that was saved, else from the weight itself.
void read_weights(const CheckpointReader& reader, Transformer& model) {
  for (Parameter* parameter : model.parameters()) {
    for (const WeightPiece& piece : parameter->pieces()) {
      const std::string master = piece.name + ".master";
      read_into(reader, reader.find(master) != nullptr ? master : piece.name,
                rows_of(parameter->master(), *parameter, piece));
    }
  }
  for (Router* router : model.routers()) read_into(reader, bias_name(*router), router->bias());
  model.refresh_weights();
}

ModelConfig resolved_model(const Config& config, int64_t vocab_size) {
  ModelConfig model = config.model;
  model.vocab_size = vocab_size;
  return model;
}

int64_t vocab_size_of(const CheckpointReader& reader) {
  const JsonSource source{.kind = ErrorKind::kCheckpoint, .file = join_path(reader.path(), kManifestName)};
  return JsonCursor(reader.info().meta, source)["vocab_size"].as_int64(1, int64_t(1) << 24);
}

}  // namespace

std::string save_run_state(FileSystem& files, const std::string& directory, const RunState& state, const Config& config,
                           const Tokenizer& tokenizer, Transformer& model, const AdamW& optimizer) {
  std::vector<TensorPiece> pieces;
  std::vector<Tensor> rounded;  // bfloat16 weights that exist in FP8 only
  for (size_t i = 0; i < optimizer.parameters().size(); ++i) {
    const Parameter& parameter = *optimizer.parameters()[i];
    Tensor weight;
    if (parameter.form() == WeightForm::kFp8Block) {
      weight = empty(parameter.shape(), DType::kBFloat16, MemoryCategory::kWorkspace);
      kernels::cast({.x = parameter.master(), .y = weight}, weight.stream());
      rounded.push_back(weight);
    } else {
      weight = parameter.weight();
    }
    const AdamW::Moments& moments = optimizer.moments(i);
    for (const WeightPiece& piece : parameter.pieces()) {
      pieces.push_back(piece_of(piece.name, TensorGroup::kModel, rows_of(weight, parameter, piece)));
      if (parameter.form() != WeightForm::kFloat32) {
        pieces.push_back(
            piece_of(piece.name + ".master", TensorGroup::kOptim, rows_of(parameter.master(), parameter, piece)));
      }
      pieces.push_back(piece_of(piece.name + ".exp_avg", TensorGroup::kOptim, rows_of(moments.m, parameter, piece)));
      pieces.push_back(piece_of(piece.name + ".exp_avg_sq", TensorGroup::kOptim, rows_of(moments.v, parameter, piece)));
    }
  }
  for (Router* router : model.routers()) {
    pieces.push_back(piece_of(bias_name(*router), TensorGroup::kModel, router->bias()));
    pieces.push_back(piece_of(share_name(*router), TensorGroup::kState, router->last_load_share()));
  }

  CheckpointInfo info{
      .run_id = state.run_id, .step = state.step, .tokens = state.tokens, .code_version = OCTET_VERSION};
  info.layout.set("world_size", 1).set("dp", config.parallel.dp).set("ep", config.parallel.ep);
  info.rng.set("seed", config.train.seed);  // streams are functions of the seed and a name; none has a position
  info.data_cursor.set("sample", state.cursor.sample)
      .set("epoch", state.cursor.epoch)
      .set("permutation_key", state.cursor.permutation_key)
      .set("dataset", state.data_digest);
  info.meta.set("vocab_size", model.config().vocab_size);
  const std::string path = save_checkpoint(
      files, directory, info, pieces,
      {{std::string(kConfigFile), print_config(config)}, {std::string(kTokenizerFile), tokenizer.json()}});
  remove_old_checkpoints(files, directory, config.checkpoint.keep_last);
  return path;
}

RunState load_run_state(const CheckpointReader& reader, Transformer& model, const AdamW& optimizer) {
  read_weights(reader, model);
  for (size_t i = 0; i < optimizer.parameters().size(); ++i) {
    const Parameter& parameter = *optimizer.parameters()[i];
    for (const WeightPiece& piece : parameter.pieces()) {
      read_into(reader, piece.name + ".exp_avg", rows_of(optimizer.moments(i).m, parameter, piece));
      read_into(reader, piece.name + ".exp_avg_sq", rows_of(optimizer.moments(i).v, parameter, piece));
    }
  }
  for (Router* router : model.routers()) read_into(reader, share_name(*router), router->last_load_share());
  const CheckpointInfo& info = reader.info();
  const JsonSource source{.kind = ErrorKind::kCheckpoint, .file = join_path(reader.path(), kManifestName)};
  const JsonCursor cursor(info.data_cursor, source);
  return {.run_id = info.run_id,
          .step = info.step,
          .tokens = info.tokens,
          .cursor = {.epoch = cursor["epoch"].as_int64(0),
                     .permutation_key = cursor["permutation_key"].as_uint64(),
                     .sample = cursor["sample"].as_int64(0)},
          .data_digest = cursor["dataset"].as_string()};
}

void require_same_run(const CheckpointReader& reader, const Config& config, const std::string& data_digest) {
  Config saved = config_of(reader), now = config;
  const std::vector<ConfigKey> saved_keys = config_keys(saved), keys = config_keys(now);
  std::string differences;
  for (size_t i = 0; i < keys.size(); ++i) {
    const std::string& path = keys[i].path;
    const bool must_match = path.starts_with("model.") || path == "data.seq_len" || path == "train.seed";
    if (keys[i].is_section || !must_match || keys[i].print() == saved_keys[i].print()) continue;
    differences += fmt::format("{}{} is {} and was {}", differences.empty() ? "" : "; ", path, keys[i].print(),
                               saved_keys[i].print());
  }
  const JsonSource source{.kind = ErrorKind::kCheckpoint, .file = join_path(reader.path(), kManifestName)};
  if (JsonCursor(reader.info().data_cursor, source)["dataset"].as_string() != data_digest) {
    differences += fmt::format("{}data.path {} holds other tokens than the run has read so far",
                               differences.empty() ? "" : "; ", config.data.path);
  }
  if (differences.empty()) return;
  fail(ErrorKind::kCheckpoint, {.what = "this is another run than the checkpoint's: " + differences,
                                .where = reader.path(),
                                .why = "going on would train a model that no configuration describes",
                                .fix = "change the values back, or start a new run with another --out"});
}

std::string newest_checkpoint_of(FileSystem& files, const std::string& path) {
  if (!files.exists(path)) {
    fail(ErrorKind::kCheckpoint, {.what = "there is no checkpoint and no run directory " + path,
                                  .where = path,
                                  .why = {},
                                  .fix = "octet ckpt ls RUN_DIR/checkpoints lists the checkpoints of a run"});
  }
  if (files.exists(join_path(path, kManifestName))) return path;
  const std::string inside = join_path(path, "checkpoints");
  std::vector<CheckpointEntry> entries = list_checkpoints(files, files.exists(inside) ? inside : path);
  for (; !entries.empty(); entries.pop_back()) {
    const std::vector<CheckpointDamage> damage = verify_checkpoint(files, entries.back().path);
    if (damage.empty()) return entries.back().path;
    log_warning("{} is damaged: {}; trying the one before", entries.back().path, damage[0].what);
  }
  fail(ErrorKind::kCheckpoint, {.what = "there is no good checkpoint in " + path,
                                .where = path,
                                .why = {},
                                .fix = "octet train writes one every checkpoint.every_steps steps and at its end"});
}

Config config_of(const CheckpointReader& reader) {
  return read_config(reader.text_file(kConfigFile), join_path(reader.path(), kConfigFile));
}

Tokenizer tokenizer_of(const CheckpointReader& reader) {
  return Tokenizer::from_json(reader.text_file(kTokenizerFile), join_path(reader.path(), kTokenizerFile));
}

std::unique_ptr<Transformer> load_model(const CheckpointReader& reader, int64_t max_positions) {
  const Config config = config_of(reader);
  auto model = std::make_unique<Transformer>(resolved_model(config, vocab_size_of(reader)), config.precision,
                                             RecomputeParts{}, max_positions);
  read_weights(reader, *model);
  return model;
}

std::string new_run_id(Clock& clock) {
  const auto seconds = std::time_t(clock.unix_ns() / 1'000'000'000);
  std::tm utc{};
  ::gmtime_r(&seconds, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y%m%d-%H%M%S", &utc);
  return fmt::format("{}-{:08x}", text, std::random_device{}());
}

}  // namespace octet
