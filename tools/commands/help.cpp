#include <cstdio>

#include "core/base/error.h"
#include "core/base/isa.h"
#include "core/base/thread_pool.h"
#include "kernels/device_runtime.h"
#include "tools/commands/commands.h"

namespace octet {

std::string version_text() {
  return fmt::format("octet {} ({} kernels, {} threads, {})", OCTET_VERSION, name_of(current_isa()),
                     default_thread_pool().num_threads(), gpu::built_for());
}

void add_help_command(CLI::App& app, int& exit_code) {
  auto topic = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("help", "Print this help, or that of one command");
  command->add_option("command", *topic, "The command to explain");
  command->callback([&app, topic, &exit_code] {
    const CLI::App* of = topic->empty() ? &app : nullptr;
    for (const CLI::App* each : app.get_subcommands([&topic](const CLI::App* a) { return a->get_name() == *topic; })) {
      of = each;
    }
    if (of == nullptr) {
      fail(ErrorKind::kArgument, {.what = fmt::format("there is no command {}", *topic),
                                  .where = "command line",
                                  .why = {},
                                  .fix = "octet help lists the commands"});
    }
    // Not of->help(): of the whole program that would be the help of the command that runs, this one.
    const std::string name = topic->empty() ? "octet" : "octet " + *topic;
    std::fputs(of->get_formatter()->make_help(of, name, CLI::AppFormatMode::Normal).c_str(), stdout);
    exit_code = 0;
  });
}

}  // namespace octet
