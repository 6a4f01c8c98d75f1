// octet docs: writes the parts of docs/ that follow from the code.
#include <cstdio>

#include "core/base/error.h"
#include "tools/commands/commands.h"
#include "tools/train/config_reference.h"

namespace octet {
namespace {

// docs/cli.md: the help of every command.
std::string cli_reference(const CLI::App& app) {
  std::string text =
      "# Commands\n"
      "\n"
      "<!-- Written by `octet docs cli > docs/cli.md`. Change tools/commands, not this file. -->\n";
  for (const CLI::App* command : app.get_subcommands(nullptr)) {
    if (command->get_group().empty()) continue;  // hidden
    text += fmt::format("\n## octet {}\n\n```\n{}```\n", command->get_name(), command->help("octet"));
  }
  return text;
}

}  // namespace

void add_docs_command(CLI::App& app, int& exit_code) {
  auto part = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("docs", "Print a generated part of the documentation, in Markdown");
  command->group("");  // for the makers of octet
  command->add_option("part", *part, "configuration or cli")->required();
  command->callback([&app, part, &exit_code] {
    if (*part == "configuration") {
      std::fputs(configuration_reference().c_str(), stdout);
    } else if (*part == "cli") {
      std::fputs(cli_reference(app).c_str(), stdout);
    } else {
      fail(ErrorKind::kArgument, {.what = fmt::format("there is no part {} of the documentation", *part),
                                  .where = "command line",
                                  .why = {},
                                  .fix = "octet docs configuration, or octet docs cli"});
    }
    exit_code = 0;
  });
}

}  // namespace octet
