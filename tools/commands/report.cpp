// octet report: draws a run from its metrics.
#include <fmt/core.h>

#include <cstdio>

#include "tools/commands/commands.h"
#include "tools/train/report.h"

namespace octet {

void add_report_command(CommandLine& line) {
  auto run_dir = std::make_shared<std::string>();
  Command command = line.subcommand(
      "report",
      "Draw a run, finished or not: writes report.html and loss.svg into its directory and prints their paths");
  command.option("run", run_dir.get(), "Directory of the run, with its metrics.jsonl").type_name("DIR").required();
  command.run([run_dir] {
    write_report(real_file_system(), *run_dir);
    fmt::print("{}\n{}\n", join_path(*run_dir, "report.html"), join_path(*run_dir, "loss.svg"));
    return 0;
  });
}

}  // namespace octet
