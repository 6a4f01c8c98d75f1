#include "tools/commands/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "core/base/error.h"

namespace octet {

Option& Option::required() { return option_->required(), *this; }
Option& Option::type_name(const std::string& name) { return option_->type_name(name), *this; }
Option& Option::shows_default() { return option_->capture_default_str(), *this; }
Option& Option::one_of(std::vector<std::string> values) {
  return option_->check(CLI::IsMember(std::move(values))), *this;
}
Option& Option::range(int64_t lowest, int64_t highest) { return option_->check(CLI::Range(lowest, highest)), *this; }
Option& Option::range(uint64_t lowest, uint64_t highest) { return option_->check(CLI::Range(lowest, highest)), *this; }
Option& Option::range(double lowest, double highest) { return option_->check(CLI::Range(lowest, highest)), *this; }
Option& Option::not_negative() { return option_->check(CLI::NonNegativeNumber), *this; }
Option& Option::separated_by(char delimiter) { return option_->delimiter(delimiter), *this; }
Option& Option::one_each() { return option_->allow_extra_args(false), *this; }
Option& Option::excludes(const Option& other) { return option_->excludes(other.option_), *this; }

Command Command::subcommand(const std::string& name, const std::string& help) {
  return {app_->add_subcommand(name, help), exit_code_};
}
void Command::require_subcommand() { app_->require_subcommand(1); }
Option Command::option(const std::string& names, Value value, const std::string& help) {
  return Option(std::visit([&](auto* typed) { return app_->add_option(names, *typed, help); }, value));
}
void Command::flag(const std::string& names, bool* value, const std::string& help) {
  app_->add_flag(names, *value, help);
}
void Command::footer(const std::string& text) { app_->footer(text); }
void Command::hide() { app_->group(""); }
void Command::run(std::function<int()> run) {
  app_->callback([run = std::move(run), exit_code = exit_code_] { *exit_code = run(); });
}

CommandLine::CommandLine(const std::string& program, const std::string& help, std::function<std::string()> version)
    : app_(std::make_unique<CLI::App>(help, program)) {
  app_->set_version_flag("--version", std::move(version));
  app_->set_help_all_flag("--help-all", "Print the help of every command");
  app_->require_subcommand(1);
}
CommandLine::~CommandLine() = default;

std::string CommandLine::help(const std::string& command) const {
  const CLI::App* of = command.empty() ? app_.get() : nullptr;
  const auto is_named = [&](const CLI::App* app) { return app->get_name() == command; };
  for (const CLI::App* each : std::as_const(*app_).get_subcommands(is_named)) of = each;
  if (of == nullptr) {
    fail(ErrorKind::kArgument, {.what = fmt::format("there is no command {}", command),
                                .where = "command line",
                                .why = {},
                                .fix = "octet help lists the commands"});
  }
  // Not of->help(): of the whole program that would be the help of the command that runs.
  const std::string name = command.empty() ? app_->get_name() : app_->get_name() + " " + command;
  return of->get_formatter()->make_help(of, name, CLI::AppFormatMode::Normal);
}

std::vector<std::string> CommandLine::command_names() const {
  std::vector<std::string> names;
  for (const CLI::App* command : std::as_const(*app_).get_subcommands(nullptr)) {
    if (!command->get_group().empty()) names.push_back(command->get_name());
  }
  return names;
}

int CommandLine::run(std::vector<std::string> words) {
  std::reverse(words.begin(), words.end());  // as CLI::App::parse wants them
  try {
    app_->parse(std::move(words));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app_->exit(error);  // --help, --version
    fail(ErrorKind::kArgument,
         {.what = error.what(), .where = "command line", .why = {}, .fix = "octet help lists the commands"});
  }
  return exit_code_;
}

}  // namespace octet
