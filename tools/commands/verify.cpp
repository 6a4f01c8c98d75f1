#include <cstdio>

#include "core/base/thread_pool.h"
#include "parallel/agreement.h"
#include "parallel/local_communicator.h"
#include "parallel/mpi_communicator.h"
#include "tools/commands/commands.h"
#include "tools/data/dataset.h"
#include "tools/train/config_keys.h"
#include "tools/train/rank_session.h"
#include "tools/train/verify.h"
#include "tools/train/yaml_reader.h"

namespace octet {
namespace {

struct VerifyOptions {
  std::string config;
  std::vector<std::string> overrides, layouts;
  int64_t steps = 3;
};

// "dp4ep2mb1il2+block" is parallel.dp 4, parallel.ep 2, train.micro_batch 1, parallel.interleave 2, train.recompute
// [block].
struct Layout {
  std::string name;
  std::vector<std::string> overrides;
};

[[noreturn]] void refuse_layout(const std::string& name, const std::string& why) {
  fail(ErrorKind::kArgument,
       {.what = fmt::format("--layouts {}: {}", name, why),
        .where = "command line",
        .why = {},
        .fix = "a layout is dpN, then epN, mbN (train.micro_batch) and ilN (parallel.interleave) where wanted, then "
               "+block, +attention, +norm or +swiglu (train.recompute) or +two_stage: dp4ep2, dp2mb1+block"});
}

Layout parse_layout(const std::string& name) {
  Layout layout{.name = name, .overrides = {}};
  std::string recompute;
  size_t at = 0;
  int64_t dp = 1;
  const auto plus = std::min(name.find('+'), name.size());
  while (at < plus) {
    const std::string key = name.substr(at, 2);
    const size_t digits = at + 2;
    size_t end = digits;
    while (end < plus && name[end] >= '0' && name[end] <= '9') ++end;
    static constexpr std::pair<std::string_view, std::string_view> kKeys[] = {
        {"dp", "parallel.dp"}, {"ep", "parallel.ep"}, {"mb", "train.micro_batch"}, {"il", "parallel.interleave"}};
    const auto known = std::find_if(std::begin(kKeys), std::end(kKeys), [&](const auto& k) { return k.first == key; });
    if (known == std::end(kKeys) || end == digits || end - digits > 6) {
      refuse_layout(name, fmt::format("\"{}\" is no part of a layout", name.substr(at)));
    }
    const std::string number = name.substr(digits, end - digits);
    if (key == "dp") dp = std::stoll(number);
    layout.overrides.push_back(fmt::format("{}={}", known->second, number));
    at = end;
  }
  while (at < name.size()) {
    const size_t end = std::min(name.find('+', at + 1), name.size());
    const std::string part = name.substr(at + 1, end - at - 1);
    if (part == "two_stage") {
      layout.overrides.push_back("parallel.two_stage=on");
      layout.overrides.push_back(fmt::format("parallel.ranks_per_node={}", std::max<int64_t>(1, dp / 2)));
    } else if (part == "block" || part == "attention" || part == "norm" || part == "swiglu") {
      recompute += (recompute.empty() ? "" : ", ") + part;
    } else {
      refuse_layout(name, fmt::format("\"+{}\" is no part of a layout", part));
    }
    at = end;
  }
  if (!recompute.empty()) layout.overrides.push_back("train.recompute=[" + recompute + "]");
  return layout;
}

// Those that the batch and the experts allow, of up to 8 ranks.
std::vector<std::string> default_layouts(const Config& config) {
  std::vector<std::string> names = {"dp1", "dp1+block"};
  const int64_t experts = config.model.moe.num_experts;
  for (const int64_t dp : {2, 4, 8}) {
    if (config.train.batch_size % dp != 0) continue;
    for (int64_t ep = 1; ep <= dp; ep *= 2) {
      if (ep > 1 && (experts == 0 || experts % ep != 0)) break;
      names.push_back(fmt::format("dp{}{}", dp, ep > 1 ? fmt::format("ep{}", ep) : ""));
    }
    if (experts > 0 && experts % dp == 0 && dp >= 4) names.push_back(fmt::format("dp{}ep{}+two_stage", dp, dp));
  }
  return names;
}

Config config_of_layout(const VerifyOptions& options, const Layout& layout, int64_t vocab_size) {
  std::vector<std::string> overrides = {"parallel.dp=1", "parallel.ep=1", "parallel.interleave=1"};
  overrides.insert(overrides.end(), options.overrides.begin(), options.overrides.end());
  // A micro-batch that a layout cannot have becomes all that a rank has.
  const auto sets_micro_batch = [](const std::vector<std::string>& list) {
    return std::any_of(list.begin(), list.end(),
                       [](const std::string& o) { return o.rfind("train.micro_batch=", 0) == 0; });
  };
  if (!sets_micro_batch(layout.overrides) && !sets_micro_batch(options.overrides))
    overrides.push_back("train.micro_batch=0");
  overrides.insert(overrides.end(), layout.overrides.begin(), layout.overrides.end());
  Config config = load_config(real_file_system(), options.config, overrides);
  config.model.vocab_size = vocab_size;
  return config;
}

// Tokens are made up, so any vocabulary will do where the dataset is not there.
int64_t vocab_size_of(const Config& config) {
  if (config.model.vocab_size > 0) return config.model.vocab_size;
  FileSystem& files = real_file_system();
  if (files.exists(config.data.path)) return read_dataset_info(files, config.data.path).vocab_size;
  fail(ErrorKind::kConfig,
       {.what =
            fmt::format("model.vocab_size is 0, and {}, whose tokenizer would give it, is not there", config.data.path),
        .where = "model.vocab_size",
        .why = {},
        .fix = "--set model.vocab_size=512, or make the dataset with octet prepare"});
}

void print_head(const Config& config, int64_t steps) {
  fmt::print("{} steps against one rank that sums in the same order; {}, made-up tokens\n\n", steps,
             name_of(config.precision.recipe));
  fmt::print("{:<22} {:>6} {:>6} {:>16} {:>16}\n", "layout", "loss", "norm", "gradients", "updates");
  std::fflush(stdout);
}

void print_row(const std::string& name, const LayoutResult& result) {
  const auto tensors = [&](int64_t different) {
    const int64_t all = result.tensors * result.steps;
    return different == 0 ? fmt::format("{} equal", all) : fmt::format("{} of {} differ", different, all);
  };
  fmt::print("{:<22} {:>6} {:>6} {:>16} {:>16}\n", name, result.losses_equal ? "equal" : "DIFFER",
             result.norms_equal ? "equal" : "DIFFER", tensors(result.gradients_different),
             tensors(result.updates_different));
  if (!result.is_equal()) {
    fmt::print("  first: {}\n  largest: {:.1e} of a gradient's largest number, {:.1e} of a weight's\n",
               result.first_difference, result.worst_gradient, result.worst_update);
  }
  std::fflush(stdout);
}

int finish(int64_t layouts, const std::string& different) {
  if (different.empty()) {
    fmt::print("\n{} what one rank computes, bit for bit\n",
               layouts == 1 ? "This layout computes" : fmt::format("All {} layouts compute", layouts));
    return 0;
  }
  fail(ErrorKind::kNumeric, {.what = "not what one rank computes: " + different,
                             .where = "the first tensor that differs is named above",
                             .why = "a run on this layout would train another model",
                             .fix = "this is a fault of octet: report it with the configuration and this table"});
}

int verify_here(const VerifyOptions& options, const Config& config, const std::vector<Layout>& layouts) {
  print_head(config, options.steps);
  std::string different;
  for (const Layout& layout : layouts) {
    const Config of_layout = config_of_layout(options, layout, config.model.vocab_size);
    LayoutResult result;
    // The reference works alone for long.
    LocalOptions local;
    local.communicator.timeout_s = 3600;
    const auto errors = run_local_ranks(int(of_layout.parallel.dp), local, [&](Communicator& world) {
      LayoutResult mine = verify_layout(of_layout, options.steps, world);
      if (world.rank() == 0) result = std::move(mine);
    });
    rethrow_first(errors);
    print_row(layout.name, result);
    if (!result.is_equal()) different += (different.empty() ? "" : ", ") + layout.name;
  }
  return finish(int64_t(layouts.size()), different);
}

int run_verify(const VerifyOptions& options) {
  if (is_mpi_rank()) {
    Config config;
    set_num_threads(threads_of_rank());
    return run_as_rank(
        {.run_dir = {}, .communicator = {.timeout_s = 3600}},
        [&] {
          config = load_config(real_file_system(), options.config, options.overrides);
          config.model.vocab_size = vocab_size_of(config);
          require(options.layouts.empty(),
                  "--layouts is for one process; ranks that mpirun has started verify the "
                  "layout of the configuration");
        },
        [&](Communicator& world) {
          require_same_program(world, config);
          if (world.rank() == 0) print_head(config, options.steps);
          const LayoutResult result = verify_layout(config, options.steps, world);
          if (world.rank() != 0) return 0;
          const std::string name = fmt::format("dp{}ep{}", config.parallel.dp, config.parallel.ep);
          print_row(name, result);
          return finish(1, result.is_equal() ? "" : name);
        });
  }
  Config config = load_config(real_file_system(), options.config, options.overrides);
  config.model.vocab_size = vocab_size_of(config);
  std::vector<Layout> layouts;
  for (const std::string& name : options.layouts.empty() ? default_layouts(config) : options.layouts) {
    layouts.push_back(parse_layout(name));
    config_of_layout(options, layouts.back(), config.model.vocab_size);  // all are sound, or none is run
  }
  set_num_threads(int(config.train.threads));
  return verify_here(options, config, layouts);
}

}  // namespace

void add_verify_command(CommandLine& line) {
  auto options = std::make_shared<VerifyOptions>();
  Command command =
      line.subcommand("verify", "Prove that layouts of ranks compute what one rank computes, bit for bit");
  command.option("config", &options->config, "The run: a YAML file (docs/configuration.md)").required();
  command.option("--layouts", &options->layouts, "Which, separated by commas: dp2,dp4ep2,dp4ep4mb1il2+block")
      .separated_by(',')
      .type_name("LAYOUTS");
  command.option("--steps", &options->steps, "Optimizer steps of each")
      .range(int64_t(1), int64_t(1000))
      .shows_default();
  add_set_option(command, &options->overrides);
  command.footer(
      "Trains the model for a few steps on one rank and on each layout, whose ranks are threads of this process, and\n"
      "compares the loss, the gradient norm, and every tensor's gradient and update. A layout is dpN (ranks), then\n"
      "epN (ranks that share the experts), mbN (train.micro_batch), ilN (parallel.interleave), then +block,\n"
      "+attention, +norm, +swiglu (train.recompute) or +two_stage (dispatch over two nodes). Without --layouts: those\n"
      "that the batch and the experts allow, of up to 8 ranks. Under mpirun: the layout of the configuration, between\n"
      "processes. Exit code 0: all equal; 6: a layout differs, and the first tensor is named.");
  command.run([options] { return run_verify(*options); });
}

}  // namespace octet
