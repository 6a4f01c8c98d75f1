#include "tools/bench/bench.h"

#include "tools/commands/commands.h"

namespace octet {

void add_bench_command(CLI::App& app, int& exit_code) {
  auto name = std::make_shared<std::string>();
  auto rest = std::make_shared<std::vector<std::string>>();
  CLI::App* command = app.add_subcommand("bench", "Measure a kernel or a step on this machine; prints a table");
  command->add_option("name", *name, "What to measure")->required()->check(CLI::IsMember(bench_names()));
  command->add_option("args", *rest, "Its arguments, see below");
  command->add_flag_callback(
      "--phases", [rest] { rest->emplace_back("phases"); }, "Of a step: the time of each kernel");
  command->footer(bench_help());
  command->callback([name, rest, &exit_code] { exit_code = run_bench(*name, *rest); });
}

}  // namespace octet
