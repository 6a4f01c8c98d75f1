#include <cstdio>

#include "core/base/isa.h"
#include "core/base/thread_pool.h"
#include "tools/commands/commands.h"

namespace octet {

std::string version_text() {
  return fmt::format("octet {} ({} kernels, {} threads, CPU only)", OCTET_VERSION, name_of(current_isa()),
                     default_thread_pool().num_threads());
}

void add_help_command(CLI::App& app, int& exit_code) {
  auto topic = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("help", "Print this help, or that of one command");
  command->add_option("command", *topic, "The command to explain");
  command->callback([&app, topic, &exit_code] {
    const CLI::App* of = topic->empty() ? &app : app.get_subcommand_no_throw(*topic);
    if (of == nullptr) {
      fail(ErrorKind::kArgument, {.what = fmt::format("there is no command {}", *topic),
                                  .where = "command line",
                                  .why = {},
                                  .fix = "octet help lists the commands"});
    }
    std::fputs(of->help().c_str(), stdout);
    exit_code = 0;
  });
}

}  // namespace octet
