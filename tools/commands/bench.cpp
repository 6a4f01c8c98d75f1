#include "tools/bench/bench.h"

#include "tools/commands/commands.h"

namespace octet {

void add_bench_command(CommandLine& line) {
  struct BenchOptions {
    std::string name;
    std::vector<std::string> rest;
    bool phases = false;
  };
  auto options = std::make_shared<BenchOptions>();
  Command command = line.subcommand("bench", "Measure a kernel or a step on this machine; prints a table");
  command.option("name", &options->name, "What to measure").required().one_of(bench_names());
  command.option("args", &options->rest, "Its arguments, see below");
  command.flag("--phases", &options->phases, "Of a step: the time of each kernel");
  command.footer(bench_help());
  command.run([options] {
    if (options->phases) options->rest.emplace_back("phases");
    return run_bench(options->name, options->rest);
  });
}

}  // namespace octet
