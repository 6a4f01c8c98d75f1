// octet docs: writes the parts of docs/ that follow from the code.
#include <cstdio>

#include "core/base/error.h"
#include "tools/commands/commands.h"
#include "tools/train/config_reference.h"

namespace octet {
namespace {

// docs/cli.md: the help of every command.
std::string cli_reference(const CommandLine& line) {
  std::string text =
      "# Commands\n"
      "\n"
      "<!-- Written by `octet docs cli > docs/cli.md`. Change tools/commands, not this file. -->\n";
  for (const std::string& command : line.command_names()) {
    text += fmt::format("\n## octet {}\n\n```\n{}```\n", command, line.help(command));
  }
  return text;
}

}  // namespace

void add_docs_command(CommandLine& line) {
  auto part = std::make_shared<std::string>();
  Command command = line.subcommand("docs", "Print a generated part of the documentation, in Markdown");
  command.hide();  // for the makers of octet
  command.option("part", part.get(), "configuration or cli").required();
  command.run([&line, part] {
    if (*part == "configuration") {
      std::fputs(configuration_reference().c_str(), stdout);
    } else if (*part == "cli") {
      std::fputs(cli_reference(line).c_str(), stdout);
    } else {
      fail(ErrorKind::kArgument, {.what = fmt::format("there is no part {} of the documentation", *part),
                                  .where = "command line",
                                  .why = {},
                                  .fix = "octet docs configuration, or octet docs cli"});
    }
    return 0;
  });
}

}  // namespace octet
