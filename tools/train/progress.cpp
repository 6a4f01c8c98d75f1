#include "tools/train/progress.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <limits>
#include <vector>

#include "core/base/log.h"

namespace octet {
namespace {

constexpr double kRedrawSeconds = 0.1;
constexpr double kEtaSteps = 20;  // the average reaches about this far back
constexpr std::string_view kReset = "\033[0m", kBold = "\033[1m", kDim = "\033[2m", kCyan = "\033[36m";

// One part of the live line. Parts of the lowest rank go first where the line is too long.
struct Part {
  int rank;
  std::string text;
  std::string_view color;
};

std::string bar(double fraction, int64_t columns, bool unicode) {
  const int64_t filled = std::clamp<int64_t>(std::llround(fraction * double(columns)), 0, columns);
  if (!unicode) return fmt::format("[{:#<{}}{:-<{}}]", "", filled, "", columns - filled);
  std::string text;
  for (int64_t i = 0; i < columns; ++i) text += i < filled ? "\u2501" : "\u2500";  // heavy and light lines
  return text;
}

std::string number_or_question(double value, int digits) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : std::string("nan");
}

// Each part at the start of a code point, so that cutting never leaves half of one.
std::string first_columns(std::string_view text, int64_t columns) {
  size_t end = 0;
  for (int64_t used = 0; end < text.size(); ++used) {
    if (used == columns) break;
    ++end;
    while (end < text.size() && (uint8_t(text[end]) & 0xc0) == 0x80) ++end;
  }
  return std::string(text.substr(0, end));
}

bool is_set(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0';
}

// By the rule of POSIX: the first of these that is set decides.
bool locale_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    if (!is_set(name)) continue;
    std::string value = std::getenv(name);
    std::transform(value.begin(), value.end(), value.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; });
    return value.find("utf-8") != std::string::npos || value.find("utf8") != std::string::npos;
  }
  return false;
}

int terminal_columns() {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

// Whether a line can be written without waiting: a terminal stopped by Ctrl-S or a full pipe takes nothing, and the
// training must not stand still with it.
bool stderr_takes_a_line() {
  pollfd poll_stderr{.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
  return ::poll(&poll_stderr, 1, 0) == 1 && (poll_stderr.revents & POLLOUT) != 0;
}

void write_to_terminal(std::string_view text) {
  if (!stderr_takes_a_line()) return;
  while (!text.empty()) {
    const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;  // the terminal is gone; the run goes on without it
    text.remove_prefix(size_t(written));
  }
}

}  // namespace

std::string format_duration(double seconds) {
  // Beyond 10^9 s, 31 years, a number of days says nothing.
  if (!(seconds >= 0) || seconds > 1e9) return "?";
  const int64_t s = std::llround(seconds);
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m{:02}s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}h{:02}m", s / 3600, s % 3600 / 60);
  return fmt::format("{}d{:02}h", s / 86400, s % 86400 / 3600);
}

std::string format_count(double value) {
  if (!std::isfinite(value)) return "?";
  constexpr std::array<const char*, 6> kUnits = {"", "k", "M", "G", "T", "P"};
  double scaled = std::abs(value);
  size_t unit = 0;
  while (scaled >= 999.5 && unit + 1 < kUnits.size()) scaled /= 1000, ++unit;
  // Digits after the point so that three are significant; a count below 1000 is shown whole where it is whole.
  int digits = scaled >= 99.95 ? 0 : scaled >= 9.995 ? 1 : 2;
  if (unit == 0 && scaled == std::floor(scaled)) digits = 0;
  return fmt::format("{}{:.{}f}{}", value < 0 ? "-" : "", scaled, digits, kUnits[unit]);
}

std::string format_bytes(int64_t bytes) {
  constexpr std::array<const char*, 6> kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double scaled = double(bytes);
  size_t unit = 0;
  while (std::abs(scaled) >= 1023.95 && unit + 1 < kUnits.size()) scaled /= 1024, ++unit;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", scaled, kUnits[unit]);
}

std::string format_thousands(int64_t value) {
  std::string text = fmt::format("{}", value);
  const size_t digits_begin = value < 0 ? 1 : 0;
  for (size_t at = text.size(); at > digits_begin + 3; at -= 3) text.insert(at - 3, 1, ',');
  return text;
}

int64_t display_columns(std::string_view text) {
  int64_t columns = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\033') {
      while (i < text.size() && text[i] != 'm') ++i;
    } else {
      columns += (uint8_t(text[i]) & 0xc0) != 0x80;
    }
  }
  return columns;
}

std::string format_progress_line(const ProgressState& state, const LineStyle& style) {
  constexpr int kAlways = 100, kBar = 0;
  const double fraction = state.total_steps > 0 ? double(state.step) / double(state.total_steps) : 0.0;
  std::vector<Part> parts = {
      {kAlways, fmt::format("{}/{}", format_thousands(state.step), format_thousands(state.total_steps)), kBold},
      {kBar, "", kCyan},
      {4, fmt::format("{}%", int64_t(std::floor(std::clamp(fraction, 0.0, 1.0) * 100))), ""},
      {kAlways, fmt::format("loss {}", number_or_question(state.loss, 3)), kBold},
      {1, state.val_loss ? fmt::format("val {}", number_or_question(*state.val_loss, 3)) : "", ""},
      {3, format_count(state.tokens_per_second) + " tok/s", ""},
      {2, std::isfinite(state.sol_percent) ? number_or_question(state.sol_percent, 1) + "% SoL" : "", ""},
      {5, fmt::format("ETA {}", format_duration(state.eta_seconds)), kDim},
  };
  std::erase_if(parts, [](const Part& part) { return part.rank != kBar && part.text.empty(); });

  constexpr int64_t kGap = 2, kShortestBar = 6, kLongestBar = 30;
  const int64_t room = std::max<int64_t>(style.columns - 1, 1);
  const auto used = [&parts] {
    int64_t columns = 0;
    for (const Part& part : parts) {
      if (part.rank != kBar) columns += display_columns(part.text) + kGap;
    }
    return columns - kGap;
  };
  const int64_t brackets = style.unicode ? 0 : 2;
  const int64_t for_bar = std::min(room - used() - kGap - brackets, kLongestBar);
  if (for_bar >= kShortestBar) {
    parts[1].text = bar(fraction, for_bar, style.unicode);
  } else {
    parts.erase(parts.begin() + 1);
  }
  while (used() > room) {
    const auto least =
        std::min_element(parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.rank < b.rank; });
    if (least->rank == kAlways) break;
    parts.erase(least);
  }

  std::string line;
  int64_t left = room;
  for (size_t i = 0; i < parts.size() && left > 0; ++i) {
    if (i > 0) {
      const int64_t gap = std::min(kGap, left);
      line.append(size_t(gap), ' '), left -= gap;
    }
    const std::string text = first_columns(parts[i].text, left);
    left -= display_columns(text);
    const bool colored = style.color && !parts[i].color.empty() && !text.empty();
    if (colored) line += parts[i].color;
    line += text;
    if (colored) line += kReset;
  }
  return line;
}

std::string format_plain_line(const ProgressState& state, const StepRecord& record) {
  std::string line = fmt::format("step {}/{}  loss {}  lr {:.2e}  grad norm {}  {} tok/s", state.step,
                                 state.total_steps, number_or_question(record.loss, 4), record.lr,
                                 number_or_question(record.grad_norm, 3), format_count(record.tokens_per_second));
  if (std::isfinite(record.sol_percent)) line += fmt::format("  {:.1f}% SoL", record.sol_percent);
  if (record.val_loss) line += fmt::format("  val loss {}", number_or_question(*record.val_loss, 4));
  if (record.bits_per_byte) line += fmt::format("  {} bits/byte", number_or_question(*record.bits_per_byte, 4));
  if (record.skipped) line += "  skipped";
  return fmt::format("{}  ETA {}", line, format_duration(state.eta_seconds));
}

EtaEstimate::EtaEstimate(int64_t total_steps, double seconds_per_step_hint)
    : total_steps_(total_steps), seconds_per_step_(seconds_per_step_hint > 0 ? seconds_per_step_hint : 0) {}

void EtaEstimate::step_done(int64_t step, double now_seconds) {
  if (last_step_ >= 0 && step > last_step_) {
    const double each = (now_seconds - last_seconds_) / double(step - last_step_);
    ++measured_;
    // The plain mean of the first steps, then the exponential average: a slow first step is soon outweighed.
    const double weight = 1.0 / std::min(double(measured_), kEtaSteps);
    seconds_per_step_ += (each - seconds_per_step_) * weight;
  }
  last_step_ = step;
  last_seconds_ = now_seconds;
}

double EtaEstimate::seconds_left() const {
  if (seconds_per_step_ <= 0) return std::numeric_limits<double>::quiet_NaN();
  return seconds_per_step_ * double(std::max<int64_t>(total_steps_ - last_step_, 0));
}

Progress::Output Progress::stderr_output() {
  const char* term = std::getenv("TERM");
  Output output;
  output.live = ::isatty(STDERR_FILENO) == 1 && term != nullptr && std::string_view(term) != "dumb";
  output.style = {.columns = 80, .color = !is_set("NO_COLOR"), .unicode = locale_is_utf8()};
  output.columns = terminal_columns;
  output.write = write_to_terminal;
  output.print = [](std::string_view line) {
    if (stderr_takes_a_line()) log_info("{}", line);
  };
  return output;
}

Progress::Progress(const ProgressOptions& options, Clock& clock, Output output)
    : options_(options),
      clock_(clock),
      output_(std::move(output)),
      eta_(options.total_steps, options.seconds_per_step_hint) {
  std::signal(SIGPIPE, SIG_IGN);
  eta_.step_done(options.first_step, clock_.seconds());
}

Progress::~Progress() {
  try {
    finish();
  } catch (...) {  // no memory for one more line: a destructor has nobody to tell
  }
}

void Progress::update(const StepRecord& record) {
  const double now = clock_.seconds();
  eta_.step_done(record.step, now);
  if (record.val_loss) val_loss_ = record.val_loss;
  last_ = record;
  const bool due = output_.live ? now - last_drawn_seconds_ >= kRedrawSeconds
                                : record.step % std::max<int64_t>(options_.plain_every_steps, 1) == 0;
  last_is_drawn_ = !drawn_ || record.val_loss || record.step >= options_.total_steps || due;
  if (!last_is_drawn_) return;
  last_drawn_seconds_ = now;
  drawn_ = true;
  draw({.step = record.step,
        .total_steps = options_.total_steps,
        .loss = record.loss,
        .tokens_per_second = record.tokens_per_second,
        .sol_percent = record.sol_percent,
        .eta_seconds = eta_.seconds_left(),
        .val_loss = val_loss_},
       record);
}

void Progress::draw(const ProgressState& state, const StepRecord& record) {
  if (!output_.live) {
    output_.print(format_plain_line(state, record));
    return;
  }
  output_.style.columns = output_.columns();
  // Back to the first column, the text, then what is left of a longer line before: one write, so nothing flickers.
  output_.write(fmt::format("\r{}\033[K", format_progress_line(state, output_.style)));
  set_progress_line_shown(true);
}

void Progress::finish() {
  if (finished_) return;
  finished_ = true;
  if (!last_) return;
  if (!last_is_drawn_) {
    draw({.step = last_->step,
          .total_steps = options_.total_steps,
          .loss = last_->loss,
          .tokens_per_second = last_->tokens_per_second,
          .sol_percent = last_->sol_percent,
          .eta_seconds = eta_.seconds_left(),
          .val_loss = val_loss_},
         *last_);
  }
  if (output_.live) {
    set_progress_line_shown(false);
    output_.write("\n");
  }
}

}  // namespace octet
