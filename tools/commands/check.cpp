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
  bool print_config = false, elsewhere = false;
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

void print_wire(const WireBytes& wire, bool on_gpus, auto&& row) {
  fmt::print("sent by it in a step{}\n", wire.two_stage ? ", tokens in two stages" : "");
  const auto line = [&](const char* name, const WireBytes::Line& sent, const char* what) {
    if (sent.bytes == 0) return;
    const double share = 100 * sent.off_node / sent.bytes;
    row(name, bytes(sent.bytes),
        sent.off_node == 0 ? what : fmt::format("{}{}{:.0f} % leave the node", what, *what == 0 ? "" : "; ", share));
  };
  line("gradients, reduced", wire.reduce, "float32");
  line("weights, gathered", wire.gather, "as products read them");
  line("norm, losses, loads", wire.sums, "float64");
  line("counts of rows", wire.counts, on_gpus ? "and which token each reads" : "int64");
  line("tokens to experts", wire.tokens_out,
       on_gpus ? "room, as the next three" : "under even routing, as the next three");
  line("rows back", wire.rows_back, "forward");
  line("gradients to experts", wire.gradients_out, "backward");
  line("gradients back", wire.gradients_back, "backward");
  line("all", wire.total(), "");
}

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

  fmt::print("{} can be run{}\n", path, run.elsewhere ? " where its dataset is and its memory suffices" : "");
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
      run.elsewhere ? fmt::format("{} tokens", format_thousands(tokens))
                    : fmt::format("{} tokens, {:.2f} times the training split", format_thousands(tokens),
                                  double(tokens) / double(run.dataset.train.num_tokens)));
  if (config.precision.recipe == Recipe::kFp8Block) {
    row("weight gradients", std::string(name_of(config.precision.wgrad)),
        config.precision.has_wgrad_tiles() ? fmt::format("columns where more than {:.4g} % of the codes would be lost",
                                                         100 * config.precision.wgrad_underflow_limit)
                                           : std::string());
  }
  const ParallelConfig& parallel = config.parallel;
  if (parallel.dp > 1) {
    fmt::print("layout\n");
    row("ranks", format_thousands(parallel.dp),
        parallel.ranks_per_node == 0 ? std::string() : fmt::format("{} on a node", run.host_ranks));
    if (!run.transport.empty()) row("messages", "", run.transport);
    if (const int64_t copies = parallel.dp / parallel.ep; moe_layers > 0) {
      row("experts of a rank", format_thousands(model.moe.num_experts / parallel.ep),
          fmt::format("ep {}; each expert on {} rank{}", parallel.ep, copies, copies == 1 ? "" : "s"));
    }
  }
  fmt::print("memory of {}\n", parallel.dp == 1 ? "tensors" : fmt::format("rank {}'s tensors, the fullest", run.rank));
  row("master weights", bytes(double(run.memory.masters)), "float32");
  row("weights for products", bytes(double(run.memory.weights)), std::string(name_of(config.precision.recipe)));
  row("gradients", bytes(double(run.memory.gradients)), "float32");
  row("moments", bytes(double(run.memory.moments)), std::string(name_of(config.precision.moments)));
  row("activations", bytes(double(run.memory.activations)),
      fmt::format("{}micro-batch of {} x {} tokens",
                  parallel.interleave == 1 ? "" : fmt::format("{} x ", parallel.interleave),
                  config.sequences_per_micro_batch(), config.data.seq_len));
  row("workspace", bytes(double(run.memory.workspace)));
  if (run.memory.transposed > 0) {
    row("transposed weights", bytes(double(run.memory.transposed)), "kept over the micro-batches of a step");
  }
  if (parallel.dp > 1) row("sums of gradients", bytes(double(run.memory.reduction)), "on their way");
  const std::string limit =
      run.memory_bytes == 0 ? std::string() : fmt::format("of {}", bytes(double(run.memory_bytes)));
  row("total", bytes(double(run.memory.total())), parallel.dp == 1 ? limit : std::string());
  if (parallel.dp > 1) {
    row(config.device == DeviceType::kCpu ? "a host" : "a GPU", bytes(double(run.memory.total()) * double(run.sharing)),
        fmt::format("{} rank{}{}{}", run.sharing, run.sharing == 1 ? "" : "s", limit.empty() ? "" : ", ", limit));
    print_wire(run.wire, config.device != DeviceType::kCpu, row);
  }
  fmt::print("disk\n");
  row("one checkpoint", bytes(double(run.disk_bytes)),
      run.elsewhere ? std::string() : fmt::format("{} free", bytes(double(run.free_bytes))));
  if (parallel.dp > 1) row("of it from a rank", bytes(double(run.disk_bytes) / double(parallel.dp)), "on average");
  if (config.checkpoint.keep_last > 0) {
    // The new one is whole before the oldest goes.
    const double needed = double(run.disk_bytes) * double(config.checkpoint.keep_last + 1);
    row("at most", bytes(needed), fmt::format("{} kept and one being saved", config.checkpoint.keep_last));
    if (!run.elsewhere && needed > double(run.free_bytes)) {
      fmt::print("  note: that is more than is free; lower checkpoint.keep_last or make room\n");
    }
  }
}

void run_check(const CheckOptions& options) {
  const CheckedRun run =
      check_run(real_file_system(), options.config, options.overrides, options.out, options.elsewhere);
  if (options.print_config) {
    std::fputs(print_config(run.config, &run.origins).c_str(), stdout);
  } else {
    print_costs(options.config, run);
  }
}

}  // namespace

void add_check_command(CommandLine& line) {
  auto options = std::make_shared<CheckOptions>();
  options->out = "runs";
  Command command =
      line.subcommand("check", "Find everything that would stop a run, at once, and print what it would cost");
  command.option("config", &options->config, "The run: a YAML file (docs/configuration.md)").required();
  add_set_option(command, &options->overrides);
  command.option("--out", &options->out, "Where the run would write; its free space is looked at; default runs")
      .type_name("DIR");
  command.flag("--elsewhere", &options->elsewhere,
               "The run is for other hosts: what this one has of data, memory and disk does not matter");
  command.flag("--print-config", &options->print_config,
               "Print the run as resolved, with the origin of each value, in place of its costs");
  command.footer(
      "Reads the configuration and its dataset and writes nothing. Exit code 0: the run can start; 2: the\n"
      "configuration is at fault; 3: the dataset; 5: the disk.");
  command.run([options] {
    run_check(*options);
    return 0;
  });
}

}  // namespace octet
