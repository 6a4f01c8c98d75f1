// octet report: draws a run from its metrics.
#include <fmt/core.h>

#include <cstdio>

#include "tools/commands/commands.h"
#include "tools/train/report.h"

namespace octet {

void add_report_command(CLI::App& app, int& exit_code) {
  auto run_dir = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(
      "report",
      "Draw a run, finished or not: writes report.html and loss.svg into its directory and prints their paths");
  command->add_option("run", *run_dir, "Directory of the run, with its metrics.jsonl")->type_name("DIR")->required();
  command->callback([run_dir, &exit_code] {
    write_report(real_file_system(), *run_dir);
    fmt::print("{}\n{}\n", join_path(*run_dir, "report.html"), join_path(*run_dir, "loss.svg"));
    exit_code = 0;
  });
}

}  // namespace octet
