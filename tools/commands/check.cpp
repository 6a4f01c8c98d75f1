// octet check: refuses a run now that would be refused later, and prints what it costs.
#include <cstdio>

#include "tools/commands/commands.h"
#include "tools/train/check_run.h"
#include "tools/train/progress.h"

namespace octet {
namespace {

struct CheckOptions {
  std::string config, out;
  std::vector<std::string> overrides;
  bool print_config = false;
};

std::string with_unit(double value, double base, std::initializer_list<const char*> units, const char* suffix) {
  auto unit = units.begin();
  while (value >= base && unit + 1 != units.end()) value /= base, ++unit;
  return fmt::format("{:.{}f} {}{}", value,
                     unit == units.begin() ? 0
                     : value < 9.995       ? 2
                     : value < 99.95       ? 1
                                           : 0,
                     *unit, suffix);
}
std::string flops(double value) { return with_unit(value, 1000, {"", "k", "M", "G", "T", "P", "E", "Z", "Y"}, "FLOP"); }
std::string bytes(double value) { return with_unit(value, 1024, {"B", "KiB", "MiB", "GiB", "TiB", "PiB"}, ""); }

void print_costs(const std::string& path, const CheckedRun& run) {
  const Config& config = run.config;
  const ModelConfig& model = config.model;
  const ParameterCounts counts = count_parameters(model, run.vocab_size);
  const double flops_per_token = training_flops_per_token(model, run.vocab_size, config.data.seq_len);
  const int64_t step_tokens = config.train.batch_size * config.data.seq_len, tokens = step_tokens * config.train.steps;
  const int64_t moe_layers = model.num_moe_layers();
  const auto row = [](const char* name, const std::string& value, const std::string& more = {}) {
    fmt::print("  {:<24} {:>18}{}{}\n", name, value, more.empty() ? "" : "  ", more);
  };

  fmt::print("{} can be run\n", path);
  fmt::print("model\n");
  row("parameters", format_thousands(counts.total()),
      fmt::format("{} without embedding and head", format_thousands(counts.total_without_embeddings())));
  row("active per token", format_thousands(counts.active()),
      fmt::format("{} without embedding and head", format_thousands(counts.active_without_embeddings())));
  row("layers", format_thousands(model.layers),
      moe_layers == 0 ? "all dense"
                      : fmt::format("{} with {} experts, top {}, {} shared", moe_layers, model.moe.num_experts,
                                    model.moe.top_k, model.moe.shared_experts));
  row("vocabulary", format_thousands(run.vocab_size));
  fmt::print("work, forward and backward\n");
  row("per token", flops(flops_per_token));
  row("per step", flops(flops_per_token * double(step_tokens)),
      fmt::format("{} tokens", format_thousands(step_tokens)));
  row("whole run", flops(flops_per_token * double(tokens)),
      fmt::format("{} tokens, {:.2f} times the training split", format_thousands(tokens),
                  double(tokens) / double(run.dataset.train.num_tokens)));
  fmt::print("memory of tensors\n");
  row("master weights", bytes(double(run.memory.masters)), "float32");
  row("weights for products", bytes(double(run.memory.weights)), std::string(name_of(config.precision.recipe)));
  row("gradients", bytes(double(run.memory.gradients)), "float32");
  row("moments", bytes(double(run.memory.moments)), std::string(name_of(config.precision.moments)));
  row("activations", bytes(double(run.memory.activations)),
      fmt::format("micro-batch of {} x {} tokens", config.sequences_per_micro_batch(), config.data.seq_len));
  row("workspace", bytes(double(run.memory.workspace)));
  row("total", bytes(double(run.memory.total())),
      run.memory_bytes == 0 ? std::string() : fmt::format("of {}", bytes(double(run.memory_bytes))));
  fmt::print("disk\n");
  row("one checkpoint", bytes(double(run.disk_bytes)), fmt::format("{} free", bytes(double(run.free_bytes))));
  if (config.checkpoint.keep_last > 0) {
    // The new one is whole before the oldest goes.
    const double needed = double(run.disk_bytes) * double(config.checkpoint.keep_last + 1);
    row("at most", bytes(needed), fmt::format("{} kept and one being saved", config.checkpoint.keep_last));
    if (needed > double(run.free_bytes)) {
      fmt::print("  note: that is more than is free; lower checkpoint.keep_last or make room\n");
    }
  }
}

void run_check(const CheckOptions& options) {
  const CheckedRun run = check_run(real_file_system(), options.config, options.overrides, options.out);
  if (options.print_config) {
    std::fputs(print_config(run.config, &run.origins).c_str(), stdout);
  } else {
    print_costs(options.config, run);
  }
}

}  // namespace

void add_check_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<CheckOptions>();
  options->out = "runs";
  CLI::App* command =
      app.add_subcommand("check", "Find everything that would stop a run, at once, and print what it would cost");
  command->add_option("config", options->config, "The run: a YAML file (docs/configuration.md)")->required();
  command->add_option("--set", options->overrides, "Override one key: --set optim.lr=3e-4 (may be repeated)")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command->add_option("--out", options->out, "Where the run would write; its free space is looked at; default runs")
      ->type_name("DIR");
  command->add_flag("--print-config", options->print_config,
                    "Print the run as resolved, with the origin of each value, in place of its costs");
  command->footer(
      "Reads the configuration and its dataset and writes nothing. Exit code 0: the run can start; 2: the\n"
      "configuration is at fault; 3: the dataset; 5: the disk.");
  command->callback([options, &exit_code] {
    run_check(*options);
    exit_code = 0;
  });
}

}  // namespace octet
