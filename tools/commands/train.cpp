#include "core/base/thread_pool.h"
#include "parallel/agreement.h"
#include "parallel/mpi_communicator.h"
#include "tools/commands/commands.h"
#include "tools/train/check_run.h"
#include "tools/train/rank_session.h"
#include "tools/train/stop_signal.h"
#include "tools/train/trainer.h"

namespace octet {
namespace {

struct TrainOptions {
  std::string config, out;
  std::vector<std::string> overrides;
  bool print_config = false;
};

// The configuration, read before check_run, which says all that is wrong with it: the threads are set before a GPU is
// opened, which takes those there are.
Config set_threads(const TrainOptions& options, int if_not_said) {
  Config config;
  error_in([&] { config = load_config(real_file_system(), options.config, options.overrides); });
  set_num_threads(config.train.threads > 0 ? int(config.train.threads) : if_not_said);
  return config;
}

int train_as_rank(const TrainOptions& options, const std::string& run_dir) {
  FileSystem& files = real_file_system();
  const Config config = set_threads(options, threads_of_rank());  // the ranks' deadline is in it too
  CheckedRun run;
  return run_as_rank(
      {.run_dir = run_dir, .communicator = {.timeout_s = config.parallel.timeout_s}},
      [&] { run = check_run(files, options.config, options.overrides, run_dir); },
      [&](Communicator& world) {
        require_same_program(world, run.config);
        Trainer trainer(run.config, run.origins, run_dir, files, real_clock(), &world);
        return trainer.run();
      });
}

int run_train(const TrainOptions& options) {
  FileSystem& files = real_file_system();
  if (options.print_config) {
    Origins origins;
    const Config config = load_config(files, options.config, options.overrides, &origins);
    std::fputs(print_config(config, &origins).c_str(), stdout);
    return 0;
  }
  StopSignal::catch_for_good();
  const std::string run_dir = options.out.empty() ? default_run_dir(options.config) : options.out;
  if (is_mpi_rank()) return train_as_rank(options, run_dir);
  set_threads(options, /*if_not_said=*/0);
  const CheckedRun run = check_run(files, options.config, options.overrides, run_dir);
  const int64_t dp = run.config.parallel.dp;
  if (dp > 1) {
    fail(ErrorKind::kConfig,
         {.what = fmt::format("parallel.dp is {}, and this is one process", dp),
          .where = options.config,
          .why = {},
          .fix = fmt::format("octet launch {} starts {} ranks, as does mpirun -np {} octet train {}; or set "
                             "parallel.dp=1 parallel.ep=1",
                             options.config, dp, dp, options.config)});
  }
  Trainer trainer(run.config, run.origins, run_dir, files, real_clock());
  return trainer.run();
}

}  // namespace

std::string default_run_dir(const std::string& config_path) {
  std::string name = file_name_of(config_path);
  if (const auto dot = name.rfind('.'); dot != std::string::npos && dot > 0) name.resize(dot);
  return join_path("runs", name);
}

void add_set_option(Command& command, std::vector<std::string>* overrides) {
  command.option("--set", overrides, "Override one key: --set optim.lr=3e-4 (may be repeated)")
      .type_name("KEY=VALUE")
      .one_each();
}

void add_train_command(CommandLine& line) {
  auto options = std::make_shared<TrainOptions>();
  Command command =
      line.subcommand("train", "Train a model, or go on where an earlier run of the same directory stopped");
  command.option("config", &options->config, "The run: a YAML file (docs/configuration.md)").required();
  add_set_option(command, &options->overrides);
  command.option("--out", &options->out, "Run directory; runs/<name of the config> where it is left out")
      .type_name("DIR");
  command.flag("--print-config", &options->print_config,
               "Print the run as resolved, with the origin of each value, and stop");
  command.footer(
      "Writes config.yaml, metrics.jsonl, samples.txt, report.html and checkpoints/ into the run directory.\n"
      "Ctrl-C, SIGTERM or SIGUSR1 saves and exits with code 75; the same command goes on from there.");
  command.run([options] { return run_train(*options); });
}

}  // namespace octet
