// The state of a run, saved on any layout of ranks and loaded on any other: every weight, master, moment and router
// tensor, bit for bit.
#include <algorithm>

#include "parallel/parallelize.h"
#include "parallel/self_communicator.h"
#include "tests/checkpoint/small_checkpoint.h"
#include "tests/checkpoint/thread_ranks.h"
#include "tests/support/memory.h"
#include "tests/support/temporary_directory.h"
#include "tools/train/run_state.h"
#include "tools/train/training_step.h"

namespace octet::test {
namespace {

struct Layout {
  int dp = 1, ep = 1;
};

constexpr int kExperts = 8;

std::vector<Layout> all_layouts() {
  std::vector<Layout> layouts;
  for (int dp = 1; dp <= 8; ++dp) {
    for (int ep = 1; ep <= dp; ++ep) {
      if (dp % ep == 0 && kExperts % ep == 0) layouts.push_back({dp, ep});
    }
  }
  return layouts;
}

// Matrices of one slab, of a whole number and of part of one; projections that end inside a slab.
Config small_config(Recipe recipe) {
  Config config;
  config.model.layers = 2;
  config.model.hidden = 24;
  config.model.heads = 3;
  config.model.vocab_size = 290;
  config.model.dense_layers = 1;
  config.model.ffn_hidden = 200;
  config.model.moe.num_experts = kExperts;
  config.model.moe.shared_experts = 1;
  config.model.moe.expert_hidden = 72;
  config.precision.recipe = recipe;
  config.checkpoint.keep_last = 0;
  return config;
}

Config with_layout(Config config, const Layout& layout) {
  config.parallel.dp = layout.dp;
  config.parallel.ep = layout.ep;
  return config;
}

// The model and optimizer of one rank, which holds its experts and owns its rows of each parameter.
struct RankModel {
  // Buckets of a few parameters, so that most lie on several ranks.
  RankModel(const Config& config, Communicator& world)
      : ranks(world, config.parallel, config.model),
        model(config.model, config.precision, RecomputeParts{}, /*max_positions=*/8, ranks.make_dispatcher()),
        shards(ranks.shard(model, {.bucket_bytes = 40'000})),
        optimizer(model.parameters(), config.optim, moments_dtype(config.precision)) {}
  Ranks ranks;
  Transformer model;
  std::unique_ptr<ParameterShards> shards;
  AdamW optimizer;
};

// The number at a place of a tensor on disk: masters do not round to bfloat16, moments are bfloat16 numbers.
class Numbers {
 public:
  Numbers(const std::string& name, bool rounds) : stream_(11, name), rounds_(rounds) {}
  float operator[](int64_t i) const {
    const uint64_t bits = stream_.bits(uint64_t(i));
    return rounds_ ? float(int64_t(bits & 0xff) - 128) / 64 : float(bits & 0xffffff) / float(1 << 24) - 0.5f;
  }

 private:
  RandomStream stream_;
  bool rounds_;
};

void visit_number(const Tensor& x, int64_t i, auto&& visit) {
  x.dtype() == DType::kFloat32 ? visit(x.data<float>()[i]) : visit(x.data<bfloat16>()[i]);
}

// Calls visit(element of x, wanted number) for all of `rows`, which x holds.
void visit_rows(const Parameter& parameter, const Tensor& x, const RowRange& rows, const std::string& suffix,
                auto&& visit) {
  const int64_t cols = parameter.shape().cols();
  for (const WeightPiece& piece : parameter.pieces()) {
    const Numbers numbers(piece.name + suffix, /*rounds=*/!suffix.empty());
    const int64_t end = std::min(rows.end(), piece.first_row + piece.rows);
    for (int64_t row = std::max(rows.first, piece.first_row); row < end; ++row) {
      for (int64_t c = 0; c < cols; ++c) {
        visit_number(x, (row - rows.first) * cols + c,
                     [&](auto& element) { visit(element, numbers[(row - piece.first_row) * cols + c]); });
      }
    }
  }
}

void fill(RankModel& rank) {
  const auto set = [](auto& element, float number) { element = std::remove_reference_t<decltype(element)>(number); };
  for (size_t i = 0; i < rank.optimizer.parameters().size(); ++i) {
    Parameter& parameter = *rank.optimizer.parameters()[i];
    visit_rows(parameter, parameter.master(), parameter.own(), "", set);
    visit_rows(parameter, rank.optimizer.moments(i).m, parameter.own(), ".exp_avg", set);
    visit_rows(parameter, rank.optimizer.moments(i).v, parameter.own(), ".exp_avg_sq", set);
    parameter.refresh();
  }
  rank.shards->gather_weights();
  for (Router* router : rank.model.routers()) {
    const Numbers bias(router->prefix() + "bias", true), share(router->prefix() + "share", false);
    for (int64_t e = 0; e < kExperts; ++e) {
      router->bias().data<float>()[e] = bias[e];
      router->last_load_share().data<float>()[e] = share[e];
    }
  }
}

// Between what is in memory and what fill() makes: own masters and moments, all weights but FP8 codes, and routers.
int64_t differences(RankModel& rank) {
  int64_t count = 0;
  const auto compare = [&count](const auto& element, float number) { count += float(element) != number; };
  for (size_t i = 0; i < rank.optimizer.parameters().size(); ++i) {
    const Parameter& parameter = *rank.optimizer.parameters()[i];
    visit_rows(parameter, parameter.master(), parameter.own(), "", compare);
    visit_rows(parameter, rank.optimizer.moments(i).m, parameter.own(), ".exp_avg", compare);
    visit_rows(parameter, rank.optimizer.moments(i).v, parameter.own(), ".exp_avg_sq", compare);
    if (parameter.form() == WeightForm::kFp8Block) continue;
    const RowRange all{0, parameter.num_rows()};
    visit_rows(parameter, parameter.weight(), all, "", [&count](const auto& element, float number) {
      count += float(element) != float(std::remove_cvref_t<decltype(element)>(number));
    });
  }
  for (Router* router : rank.model.routers()) {
    const Numbers bias(router->prefix() + "bias", true), share(router->prefix() + "share", false);
    for (int64_t e = 0; e < kExperts; ++e) {
      count += router->bias().data<float>()[e] != bias[e];
      count += router->last_load_share().data<float>()[e] != share[e];
    }
  }
  return count;
}

const Tokenizer& tokenizer() {
  static const Tokenizer instance =
      Tokenizer::load(real_file_system(), std::string(OCTET_SOURCE_DIR) + "/tests/corpus/tokenizer/tiny.json");
  return instance;
}

RunState some_state() {
  return {.run_id = "run-1",
          .step = 12,
          .tokens = 3456,
          .cursor = {.epoch = 1, .permutation_key = 99, .sample = 48},
          .data_digest = "digest"};
}

std::string save_on(SharedDisk& disk, const std::string& directory, const Config& config, const Layout& layout) {
  std::string path;
  run_fine(layout.dp, [&](Communicator& world) {
    RankFileSystem fs(disk);
    const Config here = with_layout(config, layout);
    RankModel rank(here, world);
    fill(rank);
    const std::string saved =
        save_run_state(fs, directory, some_state(), here, tokenizer(), rank.model, rank.optimizer, world);
    if (world.rank() == 0) path = saved;
  });
  return path;
}

// The tensors on disk that are not what fill() made; every one is read whole.
std::vector<std::string> wrong_tensors(const CheckpointReader& reader) {
  std::vector<std::string> wrong;
  for (size_t i = 0; i < reader.num_tensors(); ++i) {
    const CheckpointReader::Tensor tensor = reader.tensor(i);
    std::string name(tensor.name);
    const auto without = [&name](std::string_view suffix) {
      const bool has = name.ends_with(suffix);
      if (has) name.resize(name.size() - suffix.size());
      return has;
    };
    bool rounds = true;
    if (without("e_score_correction_bias")) {
      name += "bias";
    } else if (without("last_load_share")) {
      name += "share", rounds = false;
    } else if (!name.ends_with(".exp_avg") && !name.ends_with(".exp_avg_sq")) {
      without(".master"), rounds = false;
    }
    const Numbers numbers(name, rounds);
    const Tensor read = empty(tensor.shape, *in_memory(tensor.dtype), MemoryCategory::kWorkspace);
    reader.read_tensor(tensor.name, read.view().raw());
    int64_t count = 0;
    for (int64_t element_index = 0; element_index < read.num_elements(); ++element_index) {
      visit_number(read, element_index, [&](const auto& element) {
        count += float(element) != float(std::remove_cvref_t<decltype(element)>(numbers[element_index]));
      });
    }
    if (count > 0) wrong.push_back(fmt::format("{}: {} of {}", tensor.name, count, tensor.shape));
  }
  return wrong;
}

}  // namespace

TEST_CASE("a run saved on any layout of ranks loads on any other", "[checkpoint][reshard]") {
  const Recipe recipe = GENERATE(Recipe::kFp8Block, Recipe::kBf16, Recipe::kFp32);
  const Config config = small_config(recipe);
  const std::vector<Layout> layouts = all_layouts();
  REQUIRE(layouts.size() == 15);
  SharedDisk disk;
  std::vector<std::string> paths;
  std::vector<std::string> names;  // of all tensors
  for (const Layout& layout : layouts) {
    CAPTURE(name_of(recipe), layout.dp, layout.ep);
    const std::string directory = fmt::format("/dp{}-ep{}", layout.dp, layout.ep);
    REQUIRE_NOTHROW(paths.emplace_back(save_on(disk, directory, config, layout)));
    const CheckpointReader reader(disk.fs, paths.back());
    CHECK(wrong_tensors(reader) == std::vector<std::string>{});
    std::vector<std::string> here;
    for (size_t i = 0; i < reader.num_tensors(); ++i) here.emplace_back(reader.tensor(i).name);
    if (names.empty()) names = here;
    CHECK(here == names);
    CHECK(*reader.info().layout.find("world_size")->if_int64() == layout.dp);
    for (const ManifestPiece& piece : reader.manifest().pieces) {
      if (piece.group == TensorGroup::kModel) CHECK(piece.is_whole());  // the directory is a Hugging Face model
    }
  }
  CHECK(std::count(names.begin(), names.end(), "model.layers.1.mlp.experts.7.down_proj.weight.exp_avg") == 1);
  for (size_t from = 0; from < layouts.size(); ++from) {
    for (const Layout& to : layouts) {
      CAPTURE(name_of(recipe), layouts[from].dp, layouts[from].ep, to.dp, to.ep);
      REQUIRE_NOTHROW(run_fine(to.dp, [&](Communicator& world) {
        RankFileSystem fs(disk);
        RankModel rank(with_layout(config, to), world);
        const CheckpointReader reader(fs, paths[from]);
        const RunState state = load_run_state(reader, rank.model, rank.optimizer, world);
        rank.shards->gather_weights();
        require(differences(rank) == 0, "rank {}: {} numbers differ", world.rank(), differences(rank));
        require(state.step == 12 && state.tokens == 3456 && state.run_id == "run-1" && state.cursor.epoch == 1 &&
                    state.cursor.permutation_key == 99 && state.cursor.sample == 48,
                "another state");
      }));
    }
  }
}

TEST_CASE("rows that no rank owns, or two, are refused", "[checkpoint][reshard]") {
  const Config config = small_config(Recipe::kBf16);
  SharedDisk disk;
  const auto save_with = [&](const std::vector<RowRange>& of_embedding) {
    return outcomes(2, {}, [&](Communicator& world) {
      RankFileSystem fs(disk);
      Transformer model(config.model, config.precision, RecomputeParts{}, /*max_positions=*/8);
      model.parameters()[0]->place(of_embedding[size_t(world.rank())], {});
      const AdamW optimizer(model.parameters(), config.optim, DType::kBFloat16);
      save_run_state(fs, "/run", some_state(), config, tokenizer(), model, optimizer, world);
    });
  };
  for (const Outcome& outcome : save_with({{0, 256}, {128, 162}})) {
    CHECK_THAT(outcome.text, Catch::Contains("row 128 of model.embed_tokens.weight is owned by 2 ranks; wanted one"));
  }
  for (const Outcome& outcome : save_with({{0, 128}, {256, 34}})) {
    CHECK_THAT(outcome.text, Catch::Contains("row 128 of model.embed_tokens.weight is owned by 0 ranks; wanted one"));
  }
  CHECK_FALSE(disk.fs.exists("/run"));
}

TEST_CASE("a damaged block that one rank reads stops all ranks", "[checkpoint][reshard]") {
  const Config config = small_config(Recipe::kFp8Block);
  SharedDisk disk;
  const std::string path = save_on(disk, "/run", config, {2, 1});
  const Manifest manifest = CheckpointReader(disk.fs, path).manifest();
  std::optional<ManifestPiece> piece;
  for (const ManifestPiece& each : manifest.pieces) {
    if (each.name.ends_with(".exp_avg") && !each.is_whole() && each.box.start[0] > 0) piece = each;
  }
  REQUIRE(piece);
  disk.fs.content(join_path(path, manifest.files[piece->file].name))[piece->begin] ^= 1;
  const std::vector<Outcome> all = outcomes(2, {}, [&](Communicator& world) {
    RankFileSystem fs(disk);
    RankModel rank(with_layout(config, {2, 1}), world);
    load_run_state(CheckpointReader(fs, path), rank.model, rank.optimizer, world);
  });
  for (const Outcome& outcome : all) {
    CHECK(outcome.code == 4);
    CHECK_THAT(outcome.text,
               Catch::Contains("(host ") && Catch::Contains(fmt::format("tensor {}: block 0", piece->name)));
    CHECK(outcome.text == all[0].text);
  }
}

TEST_CASE("loading takes little memory beside what is loaded", "[checkpoint][reshard]") {
  const TemporaryDirectory directory;
  FileSystem& fs = real_file_system();
  Config config = small_config(Recipe::kFp8Block);
  config.model.vocab_size = 16'000;
  config.model.hidden = 192;
  const auto self = make_self_communicator();
  const std::string path = [&] {
    RankModel all(config, *self);
    fill(all);
    return save_run_state(fs, directory.path(), some_state(), config, tokenizer(), all.model, all.optimizer, *self);
  }();
  const bool other_dtype = GENERATE(false, true);  // moments are converted
  config.precision.moments = other_dtype ? MomentType::kFp32 : MomentType::kBf16;
  RankModel rank(config, *self);  // the moments of the embedding are 6 MiB in bfloat16
  // All memory of the model is there, and was written to.
  for (size_t i = 0; i < rank.optimizer.parameters().size(); ++i) {
    const AdamW::Moments& moments = rank.optimizer.moments(i);
    for (const Tensor& tensor : {rank.optimizer.parameters()[i]->master(), moments.m, moments.v}) {
      std::fill_n(static_cast<char*>(tensor.view().raw()), tensor.num_bytes(), 1);
    }
  }
  rank.model.refresh_weights();
  release_kept_memory();
  const Cost cost;
  load_run_state(CheckpointReader(fs, path), rank.model, rank.optimizer, *self);
  CHECK(cost.is_within(/*bytes=*/uint64_t(4) << 20, /*seconds=*/60));
  CHECK(differences(rank) == 0);
}

}  // namespace octet::test
