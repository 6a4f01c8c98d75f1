// The command line: commands, their options and their help. Behind it is CLI11, which costs every file that includes it
// more to compile than all else in that file.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace octet {

// What an option says of itself, in any order: command.option("--seed", &seed, "...").not_negative().shows_default().
class Option {
 public:
  explicit Option(CLI::Option* option) : option_(option) {}

  Option& required();
  Option& type_name(const std::string& name);  // of its value, in the help
  Option& shows_default();
  Option& one_of(std::vector<std::string> values);
  Option& range(int64_t lowest, int64_t highest);
  Option& range(uint64_t lowest, uint64_t highest);
  Option& range(double lowest, double highest);
  Option& not_negative();
  Option& separated_by(char delimiter);  // of a list: several values in one word
  Option& one_each();                    // of a list: one word each time it is given
  Option& excludes(const Option& other);

 private:
  CLI::Option* option_;
};

// A command. What it is given to write to must live until the command has run.
class Command {
 public:
  using Value = std::variant<std::string*, std::vector<std::string>*, int*, int64_t*, uint64_t*, float*, double*>;

  Command(CLI::App* app, int* exit_code) : app_(app), exit_code_(exit_code) {}

  Command subcommand(const std::string& name, const std::string& help);
  void require_subcommand();
  Option option(const std::string& names, Value value, const std::string& help);
  void flag(const std::string& names, bool* value, const std::string& help);
  void footer(const std::string& text);  // the end of its help
  void hide();                           // from the help of the program
  // `run` gives the exit code, or throws an Error.
  void run(std::function<int()> run);

 private:
  CLI::App* app_;
  int* exit_code_;
};

class CommandLine {
 public:
  CommandLine(const std::string& program, const std::string& help, std::function<std::string()> version);
  ~CommandLine();

  Command subcommand(const std::string& name, const std::string& help) { return root().subcommand(name, help); }
  // The help of a command, or of the program where the name is empty. Throws kArgument where there is none of that
  // name.
  std::string help(const std::string& command) const;
  std::vector<std::string> command_names() const;  // but of those that are hidden

  // Reads the words after the program's name and runs the command they name. Throws kArgument where they are wrong.
  int run(std::vector<std::string> words);

 private:
  Command root() { return {app_.get(), &exit_code_}; }

  std::unique_ptr<CLI::App> app_;
  int exit_code_ = 0;
};

}  // namespace octet
