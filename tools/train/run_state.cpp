#include "tools/train/run_state.h"

#include <algorithm>
#include <ctime>
#include <optional>
#include <random>

#include "core/base/log.h"
#include "kernels/elementwise.h"
#include "parallel/agreement.h"
#include "parallel/self_communicator.h"
#include "tools/train/config_keys.h"
#include "tools/train/yaml_reader.h"

namespace octet {
namespace {

constexpr std::string_view kWgradColumns = "wgrad_columns";  // in the manifest's meta
constexpr std::string_view kConfigFile = "config.yaml", kTokenizerFile = "tokenizer.json";

std::string bias_name(const Router& router) { return router.prefix() + "e_score_correction_bias"; }
std::string share_name(const Router& router) { return router.prefix() + "last_load_share"; }

// What is read, converted or sent at a time, as float32; a row, where that is longer.
constexpr int64_t kChunkBytes = int64_t(4) << 20;

// Memory for a chunk, taken once: blocks of many sizes would all be kept (core/tensor/allocator.h).
class Chunk {
 public:
  View view(const Shape& shape, DType dtype) {
    const int64_t bytes = shape.num_elements() * size_of(dtype);
    if (!memory_.is_defined() || memory_.num_bytes() < bytes) {
      memory_ = empty({std::max(bytes, kChunkBytes)}, DType::kUInt8, MemoryCategory::kWorkspace);
    }
    return View(memory_.view().raw(), shape, dtype);
  }

 private:
  Tensor memory_;
};

RowRange rows_of(const WeightPiece& piece) { return {.first = piece.first_row, .rows = piece.rows}; }

RowRange intersection(const RowRange& a, const RowRange& b) {
  const int64_t first = std::max(a.first, b.first);
  return {.first = first, .rows = std::max<int64_t>(std::min(a.end(), b.end()) - first, 0)};
}

// Calls body(rows) for consecutive parts of `rows` that are a chunk each.
template <class Body>
void for_chunks(const RowRange& rows, int64_t cols, Body&& body) {
  const int64_t most = std::max<int64_t>(kChunkBytes / (cols * int64_t(sizeof(float))), 1);
  for (int64_t first = rows.first; first < rows.end(); first += most) {
    body(RowRange{.first = first, .rows = std::min(most, rows.end() - first)});
  }
}

// The rows `wanted` of a tensor that holds the rows `held`: [rows, cols].
Tensor rows_of(const Tensor& tensor, const RowRange& held, const RowRange& wanted, int64_t cols) {
  return tensor.reshape({held.rows, cols}).slice_rows(wanted.first - held.first, wanted.rows);
}

// Rows of a piece as a box of its tensor on disk.
Box box_of(const Parameter& parameter, const WeightPiece& piece, const RowRange& rows) {
  Box box = whole_box(parameter.piece_shape(piece));
  if (parameter.shape().rank() > 1) box.start[0] = rows.first - piece.first_row, box.extent[0] = rows.rows;
  return box;
}

CheckpointReader::Tensor find_tensor(const CheckpointReader& reader, const std::string& name, const Shape& shape) {
  const std::optional<CheckpointReader::Tensor> saved = reader.find(name);
  if (!saved || saved->shape != shape) {
    fail(ErrorKind::kCheckpoint,
         {.what = !saved ? fmt::format("tensor {} is missing", name)
                         : fmt::format("tensor {} is {}; the model wants {}", name, saved->shape, shape),
          .where = reader.path(),
          .why = "the model would be only partly that of the checkpoint",
          .fix = "use the configuration that wrote it: config.yaml in that directory"});
  }
  require(ErrorKind::kCheckpoint, saved->dtype == StoredDType::kF32 || saved->dtype == StoredDType::kBF16,
          "{}: tensor {} is {}; wanted F32 or BF16", reader.path(), name, name_of(saved->dtype));
  return *saved;
}

// Reads a box of a tensor of float32 or bfloat16 into memory of either, rounding where it must.
void read_into(const CheckpointReader& reader, const CheckpointReader::Tensor& saved, const Box& box, const Tensor& to,
               Chunk& chunk) {
  const Tensor host = to.device().is_cpu() ? to : empty(to.shape(), to.dtype(), MemoryCategory::kWorkspace);
  if (in_memory(saved.dtype) == to.dtype()) {
    reader.read_tensor(saved.name, box, host.view().raw());
  } else {
    const View read = chunk.view(to.shape(), *in_memory(saved.dtype));
    reader.read_tensor(saved.name, box, read.raw());
    kernels::cast({.x = read, .y = host}, default_stream());
  }
  copy(host, to);
}

void read_vector(const CheckpointReader& reader, const std::string& name, const Tensor& to, Chunk& chunk) {
  read_into(reader, find_tensor(reader, name, to.shape()), whole_box(to.shape()), to, chunk);
}

// The own rows of a piece, from the tensor `name`.
void read_own_rows(const CheckpointReader& reader, const std::string& name, const Parameter& parameter,
                   const WeightPiece& piece, const Tensor& to, Chunk& chunk, Communicator& world) {
  const int64_t cols = parameter.shape().cols();
  const CheckpointReader::Tensor saved = find_tensor(reader, name, parameter.piece_shape(piece));
  for_chunks(intersection(parameter.own(), rows_of(piece)), cols, [&](const RowRange& rows) {
    read_into(reader, saved, box_of(parameter, piece, rows), rows_of(to, parameter.own(), rows, cols), chunk);
    world.progress();
  });
}

// Masters from `<name>.master` where that was saved, else from the weight itself.
void read_weights(const CheckpointReader& reader, Transformer& model, Chunk& chunk, Communicator& world) {
  for (Parameter* parameter : model.parameters()) {
    for (const WeightPiece& piece : parameter->pieces()) {
      const std::string master = piece.name + ".master";
      read_own_rows(reader, reader.find(master) ? master : piece.name, *parameter, piece, parameter->master(), chunk,
                    world);
    }
  }
  for (Router* router : model.routers()) read_vector(reader, bias_name(*router), router->bias(), chunk);
  model.refresh_weights();
}

// Which rows of its parameters each rank owns.
class Owners {
 public:
  Owners(const std::vector<Parameter*>& parameters, Communicator& world)
      : rank_(world.rank()), ranks_(size_t(world.size())), parameters_(parameters.size()) {
    std::vector<Entry> mine;
    for (const Parameter* parameter : parameters) {
      mine.push_back({.slice = parameter->cut().first, .own = parameter->own()});
    }
    static_assert(sizeof(Entry) == 3 * sizeof(int64_t));
    const auto numbers = int64_t(3 * mine.size());
    all_.resize(mine.size() * ranks_);
    world.all_gather(ConstView(mine.data(), {numbers}, DType::kInt64),
                     View(all_.data(), {numbers * world.size()}, DType::kInt64), default_stream());
  }

  struct Part {
    int rank = 0;
    RowRange rows;
  };
  // Who owns these rows of a parameter that this rank holds, in the order of the rows.
  std::vector<Part> of(size_t parameter, const std::string& name, const RowRange& rows) const {
    std::vector<Part> parts;
    for (size_t rank = 0; rank < ranks_; ++rank) {
      const Entry& entry = all_[rank * parameters_ + parameter];
      if (entry.slice != all_[size_t(rank_) * parameters_ + parameter].slice) continue;  // holds other experts
      const RowRange part = intersection(entry.own, rows);
      if (part.rows > 0) parts.push_back({.rank = int(rank), .rows = part});
    }
    std::sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.rows.first < b.rows.first; });
    int64_t next = rows.first;
    for (const Part& part : parts) {
      require(part.rows.first == next, "save_run_state: row {} of {} is owned by {} ranks; wanted one",
              std::min(part.rows.first, next), name, part.rows.first < next ? 2 : 0);
      next = part.rows.end();
    }
    require(next == rows.end(), "save_run_state: row {} of {} is owned by 0 ranks; wanted one", next, name);
    return parts;
  }

 private:
  struct Entry {
    int64_t slice = 0;
    RowRange own;
  };
  int rank_;
  size_t ranks_, parameters_;
  std::vector<Entry> all_;
};

// The bfloat16 values of a weight that exists in FP8 only, from the masters of its owners; on the first of them, which
// writes it. Undefined on the others.
Tensor collect_rounded(const Parameter& parameter, const WeightPiece& piece, const std::vector<Owners::Part>& owners,
                       Chunk& chunk, Communicator& world) {
  const int64_t cols = parameter.shape().cols();
  const int writer = owners.front().rank;
  const bool is_writer = writer == world.rank();
  Tensor whole;
  const Device device = parameter.device();
  if (is_writer)
    whole = empty({piece.rows, cols}, DType::kBFloat16, MemoryCategory::kWorkspace, device);  // [rows, cols]
  Stream& stream = default_stream(device);
  for (const Owners::Part& part : owners) {
    const bool is_mine = part.rank == world.rank();
    if (!is_mine && !is_writer) continue;
    for_chunks(part.rows, cols, [&](const RowRange& rows) {
      Tensor there;  // on a GPU, where a chunk of the host is no place for a kernel to write
      if (!is_writer && !device.is_cpu()) {
        there = empty({rows.rows, cols}, DType::kBFloat16, MemoryCategory::kWorkspace, device);
      }
      const View to = is_writer            ? rows_of(whole, rows_of(piece), rows, cols).view()
                      : there.is_defined() ? there.view()
                                           : chunk.view({rows.rows, cols}, DType::kBFloat16);
      if (is_mine) kernels::cast({.x = rows_of(parameter.master(), parameter.own(), rows, cols), .y = to}, stream);
      if (is_mine && !is_writer) world.send(to, writer, stream);
      if (!is_mine) world.receive(to, part.rank, stream);
    });
  }
  return whole;
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
  return save_run_state(files, directory, state, config, tokenizer, model, optimizer, *make_self_communicator());
}

std::string save_run_state(FileSystem& files, const std::string& directory, const RunState& state, const Config& config,
                           const Tokenizer& tokenizer, Transformer& model, const AdamW& optimizer,
                           Communicator& world) {
  std::vector<TensorPiece> pieces;
  std::vector<Tensor> on_hand;  // what `pieces` points to
  const auto add = [&](std::string name, TensorGroup group, const Shape& shape, const Tensor& values,
                       const std::optional<Box>& box = {}) {
    on_hand.push_back(on_host(values));
    pieces.push_back({.name = std::move(name),
                      .group = group,
                      .dtype = stored(values.dtype()),
                      .shape = shape,
                      .data = on_hand.back().view().raw(),
                      .box = box});
  };
  const Owners owners(optimizer.parameters(), world);
  Chunk chunk;
  for (size_t i = 0; i < optimizer.parameters().size(); ++i) {
    const Parameter& parameter = *optimizer.parameters()[i];
    const AdamW::Moments& moments = optimizer.moments(i);
    const int64_t cols = parameter.shape().cols();
    for (const WeightPiece& piece : parameter.pieces()) {
      const Shape shape = parameter.piece_shape(piece);
      const std::vector<Owners::Part> parts = owners.of(i, piece.name, rows_of(piece));
      const bool is_writer = parts.front().rank == world.rank();
      if (parameter.form() == WeightForm::kFp8Block) {
        const Tensor whole = collect_rounded(parameter, piece, parts, chunk, world);
        if (is_writer) add(piece.name, TensorGroup::kModel, shape, whole);
      } else if (is_writer) {
        add(piece.name, TensorGroup::kModel, shape,
            rows_of(parameter.weight(), {0, parameter.num_rows()}, rows_of(piece), cols));
      }
      const RowRange own = intersection(parameter.own(), rows_of(piece));
      if (own.rows == 0) continue;
      const auto add_own = [&](const char* suffix, const Tensor& values) {
        add(piece.name + suffix, TensorGroup::kOptim, shape, rows_of(values, parameter.own(), own, cols),
            box_of(parameter, piece, own));
      };
      if (parameter.form() != WeightForm::kFloat32) add_own(".master", parameter.master());
      add_own(".exp_avg", moments.m);
      add_own(".exp_avg_sq", moments.v);
    }
  }
  if (world.rank() == 0) {
    for (Router* router : model.routers()) {
      add(bias_name(*router), TensorGroup::kModel, router->bias().shape(), router->bias());
      add(share_name(*router), TensorGroup::kState, router->last_load_share().shape(), router->last_load_share());
    }
  }

  CheckpointInfo info{
      .run_id = state.run_id, .step = state.step, .tokens = state.tokens, .code_version = OCTET_VERSION};
  info.layout.set("world_size", world.size()).set("dp", config.parallel.dp).set("ep", config.parallel.ep);
  info.rng.set("seed", config.train.seed);  // streams are functions of the seed and a name; none has a position
  info.data_cursor.set("sample", state.cursor.sample)
      .set("epoch", state.cursor.epoch)
      .set("permutation_key", state.cursor.permutation_key)
      .set("dataset", state.data_digest);
  info.meta.set("vocab_size", model.config().vocab_size);
  if (const WgradTiles* tiles = model.wgrad_tiles()) {
    Json names = Json::array();
    for (const std::string& name : tiles->columns()) names.push_back(name);
    info.meta.set(kWgradColumns, std::move(names));
  }
  const std::string path = save_checkpoint(
      files, directory, info, pieces,
      {{std::string(kConfigFile), print_config(config)}, {std::string(kTokenizerFile), tokenizer.json()}}, {}, world);
  remove_old_checkpoints(files, directory, config.checkpoint.keep_last, world);
  return path;
}

RunState load_run_state(const CheckpointReader& reader, Transformer& model, const AdamW& optimizer) {
  return load_run_state(reader, model, optimizer, *make_self_communicator());
}

RunState load_run_state(const CheckpointReader& reader, Transformer& model, const AdamW& optimizer,
                        Communicator& world) {
  all_or_none(world, [&] {
    Chunk chunk;
    read_weights(reader, model, chunk, world);
    for (size_t i = 0; i < optimizer.parameters().size(); ++i) {
      const Parameter& parameter = *optimizer.parameters()[i];
      const AdamW::Moments& moments = optimizer.moments(i);
      for (const WeightPiece& piece : parameter.pieces()) {
        read_own_rows(reader, piece.name + ".exp_avg", parameter, piece, moments.m, chunk, world);
        read_own_rows(reader, piece.name + ".exp_avg_sq", parameter, piece, moments.v, chunk, world);
      }
    }
    for (Router* router : model.routers()) read_vector(reader, share_name(*router), router->last_load_share(), chunk);
  });
  const CheckpointInfo& info = reader.info();
  const JsonSource source{.kind = ErrorKind::kCheckpoint, .file = join_path(reader.path(), kManifestName)};
  const JsonCursor cursor(info.data_cursor, source), meta(info.meta, source);
  if (WgradTiles* tiles = model.wgrad_tiles()) {
    std::vector<std::string> names;
    if (const std::optional<JsonCursor> saved = meta.find(kWgradColumns)) {
      for (size_t i = 0; i < saved->size(); ++i) names.push_back(saved->at(i).as_string());
    }
    tiles->set_columns(names);
  }
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

std::optional<ProductFormats> formats_of_run(FileSystem& files, const std::string& checkpoints) {
  std::vector<CheckpointEntry> entries = list_checkpoints(files, checkpoints);
  for (; !entries.empty(); entries.pop_back()) {
    try {
      return config_of(CheckpointReader(files, entries.back().path)).precision.products;
    } catch (const Error&) {
      continue;  // who resumes says what is wrong with it
    }
  }
  return std::nullopt;
}

Tokenizer tokenizer_of(const CheckpointReader& reader) {
  return Tokenizer::from_json(reader.text_file(kTokenizerFile), join_path(reader.path(), kTokenizerFile));
}

std::unique_ptr<Transformer> load_model(const CheckpointReader& reader, int64_t max_positions, Device device) {
  const Config config = config_of(reader);
  auto model =
      std::make_unique<Transformer>(resolved_model(config, vocab_size_of(reader)), config.precision, RecomputeParts{},
                                    max_positions, std::make_unique<LocalDispatcher>(), device);
  Chunk chunk;
  read_weights(reader, *model, chunk, *make_self_communicator());
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
