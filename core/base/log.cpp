#include "core/base/log.h"

#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <iterator>
#include <mutex>

namespace octet {
namespace {

std::atomic<bool> progress_line_shown{false};
std::atomic<int> copy_fd{-1};

// One write for a line; a disk that is full does not end the program.
class CopySink final : public spdlog::sinks::base_sink<std::mutex> {
 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    const int fd = copy_fd.load();
    if (fd < 0) return;
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    [[maybe_unused]] const auto written = ::write(fd, line.data(), line.size());
  }
  void flush_() override {}
};

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    const bool color = std::getenv("NO_COLOR") == nullptr;
    const spdlog::sink_ptr sinks[] = {std::make_shared<spdlog::sinks::stderr_color_sink_mt>(
                                          color ? spdlog::color_mode::automatic : spdlog::color_mode::never),
                                      std::make_shared<CopySink>()};
    auto made = std::make_shared<spdlog::logger>("octet", std::begin(sinks), std::end(sinks));
    made->set_pattern("%H:%M:%S %^%l%$ %v");
    const char* level = std::getenv("OCTET_LOG");
    made->set_level(level == nullptr ? spdlog::level::info : spdlog::level::from_str(level));
    return made;
  }();
  return *instance;
}

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

}  // namespace

bool detail::log_enabled(LogLevel level) { return logger().should_log(to_spdlog(level)); }

void detail::log_line(LogLevel level, std::string_view text) {
  if (progress_line_shown.load(std::memory_order_relaxed)) {
    const char clear[] = "\r\033[K";
    [[maybe_unused]] const auto written = ::write(STDERR_FILENO, clear, sizeof clear - 1);
  }
  logger().log(to_spdlog(level), "{}", text);
}

void copy_log_to(int fd) { copy_fd.store(fd); }

void set_progress_line_shown(bool shown) { progress_line_shown.store(shown, std::memory_order_relaxed); }

}  // namespace octet
