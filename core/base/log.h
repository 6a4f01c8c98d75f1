// Log lines, to stderr, with the time and a level. Results go to stdout and are never log lines.
// OCTET_LOG=debug|info|warning|error|off sets the level; the default is info.
#pragma once

#include <fmt/core.h>

#include <string_view>

namespace octet {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

namespace detail {
bool log_enabled(LogLevel level);
void log_line(LogLevel level, std::string_view text);
template <class... Args>
void log_at(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  if (log_enabled(level)) log_line(level, fmt::format(format, std::forward<Args>(args)...));
}
}  // namespace detail

// Called with true while a progress line stands on the terminal, so that a log line first clears it.
void set_progress_line_shown(bool shown);

// Every log line from now on goes to this file as well, without colours. The descriptor stays open.
void copy_log_to(int fd);

template <class... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  detail::log_at(LogLevel::kDebug, format, std::forward<Args>(args)...);
}
template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  detail::log_at(LogLevel::kInfo, format, std::forward<Args>(args)...);
}
template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  detail::log_at(LogLevel::kWarning, format, std::forward<Args>(args)...);
}
template <class... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  detail::log_at(LogLevel::kError, format, std::forward<Args>(args)...);
}

}  // namespace octet
