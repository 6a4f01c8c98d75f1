// One error type for the whole program: a kind, which decides the exit code, and one block of text that says
// what went wrong, where, why it matters and what to do.
#pragma once

#include <fmt/core.h>

#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace octet {

enum class ErrorKind {
  kArgument,       // a call or a command line that cannot be meant: exit code 2
  kConfig,         // a configuration that cannot be run: 2
  kDevice,         // a device that is missing or fails: 2
  kData,           // token shards, text, a tokenizer: 3
  kCheckpoint,     // a checkpoint that is missing, damaged or of another model: 4
  kStorage,        // disk full, permission, input/output: 5
  kNumeric,        // a number that must be finite is not: 6
  kCommunication,  // a peer is lost: 7
  kHang,           // a peer or a device makes no progress: 8
  kMemory,         // out of memory: 9
};

// The program's exit code for an error of this kind. 0 is success and kExitSavedAndRequeue a run that was told to
// stop, saved, and wants to be started again.
int exit_code(ErrorKind kind);
inline constexpr int kExitSavedAndRequeue = 75;

// The parts of a message to a user. Only `what` is owed; an empty part is not printed.
struct Report {
  std::string what;   // the fault and the value: "moe.top_k is 9; wanted 1 to moe.num_experts, 8"
  std::string where;  // file:line:column, a tensor, a byte offset, a rank
  std::string why;    // what would have happened otherwise
  std::string fix;    // the way out, as a command or a corrected line
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, Report report);
  // Several faults found in one pass; there is at least one. The report is that of the only one, or says `summary` and
  // how many there are.
  Error(ErrorKind kind, std::string_view summary, std::vector<Report> parts);
  ErrorKind kind() const { return kind_; }
  int code() const { return exit_code(kind_); }
  const Report& report() const { return report_; }
  const std::vector<Report>& parts() const { return parts_; }  // empty where there is one fault
  // The block a user sees: "octet: error: what", then an indented line for each part there is, then the code. Several
  // faults are numbered.
  std::string block() const;

 private:
  ErrorKind kind_;
  Report report_;
  std::vector<Report> parts_;
};

// Throws an Error with the whole report, or with several.
[[noreturn]] void fail(ErrorKind kind, Report report);
[[noreturn]] void fail(ErrorKind kind, std::string_view summary, std::vector<Report> parts);

namespace detail {
// A format string that the compiler checks, together with the place of the call.
template <class... Args>
struct PlacedFormat {
  fmt::format_string<Args...> format;
  std::source_location place;
  template <class String>
#ifdef __CUDACC__  // nvcc cannot run the check; the emulated build runs it over the same files
  PlacedFormat(const String& text, std::source_location at = std::source_location::current())
      : format(fmt::runtime(text)), place(at) {
  }
#else
  consteval PlacedFormat(const String& text, std::source_location at = std::source_location::current())
      : format(text), place(at) {
  }
#endif
};
[[noreturn]] void throw_at(ErrorKind kind, std::string what, const std::source_location& place);
}  // namespace detail

// require(condition, "who: what came; what was wanted", ...): throws an argument error where the condition is false.
template <class... Args>
void require(bool condition, detail::PlacedFormat<std::type_identity_t<Args>...> message, Args&&... args) {
  if (!condition) [[unlikely]] {
    detail::throw_at(ErrorKind::kArgument, fmt::format(message.format, std::forward<Args>(args)...), message.place);
  }
}
template <class... Args>
void require(ErrorKind kind, bool condition, detail::PlacedFormat<std::type_identity_t<Args>...> message,
             Args&&... args) {
  if (!condition) [[unlikely]] {
    detail::throw_at(kind, fmt::format(message.format, std::forward<Args>(args)...), message.place);
  }
}

}  // namespace octet
