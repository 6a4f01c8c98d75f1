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

void add_help_command(CommandLine& line) {
  auto topic = std::make_shared<std::string>();
  Command command = line.subcommand("help", "Print this help, or that of one command");
  command.option("command", topic.get(), "The command to explain");
  command.run([&line, topic] {
    std::fputs(line.help(*topic).c_str(), stdout);
    return 0;
  });
}

}  // namespace octet
