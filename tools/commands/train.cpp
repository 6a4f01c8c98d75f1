#include "core/base/thread_pool.h"
#include "tools/commands/commands.h"
#include "tools/train/check_run.h"
#include "tools/train/trainer.h"

namespace octet {
namespace {

struct TrainOptions {
  std::string config, out;
  std::vector<std::string> overrides;
  bool print_config = false;
};

// "runs/tiny" for configs/tiny.yaml.
std::string default_run_dir(const std::string& config_path) {
  std::string name = file_name_of(config_path);
  if (const auto dot = name.rfind('.'); dot != std::string::npos && dot > 0) name.resize(dot);
  return join_path("runs", name);
}

int run_train(const TrainOptions& options) {
  FileSystem& files = real_file_system();
  if (options.print_config) {
    Origins origins;
    const Config config = load_config(files, options.config, options.overrides, &origins);
    std::fputs(print_config(config, &origins).c_str(), stdout);
    return 0;
  }
  const std::string run_dir = options.out.empty() ? default_run_dir(options.config) : options.out;
  const CheckedRun run = check_run(files, options.config, options.overrides, run_dir);
  set_num_threads(int(run.config.train.threads));
  Trainer trainer(run.config, run.origins, run_dir, files, real_clock());
  return trainer.run();
}

}  // namespace

void add_train_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<TrainOptions>();
  CLI::App* command =
      app.add_subcommand("train", "Train a model, or go on where an earlier run of the same directory stopped");
  command->add_option("config", options->config, "The run: a YAML file (docs/configuration.md)")->required();
  command->add_option("--set", options->overrides, "Override one key: --set optim.lr=3e-4 (may be repeated)")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  command->add_option("--out", options->out, "Run directory; runs/<name of the config> where it is left out")
      ->type_name("DIR");
  command->add_flag("--print-config", options->print_config,
                    "Print the run as resolved, with the origin of each value, and stop");
  command->footer(
      "Writes config.yaml, metrics.jsonl, samples.txt, report.html and checkpoints/ into the run directory.\n"
      "Ctrl-C, SIGTERM or SIGUSR1 saves and exits with code 75; the same command goes on from there.");
  command->callback([options, &exit_code] { exit_code = run_train(*options); });
}

}  // namespace octet
