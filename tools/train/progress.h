// What a person watching a training run sees: on a terminal one live line, elsewhere a log line now and then.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "core/base/clock.h"
#include "tools/train/metrics.h"

namespace octet {

// "0s", "42s", "3m05s", "2h07m", "5d03h"; "?" for a time that is not known (NaN, infinite or negative).
std::string format_duration(double seconds);
// Three significant digits and a unit: "0", "831", "12.3k", "1.20M", "4.00G"; "?" where not finite.
std::string format_count(double value);
// "512 B", "4.0 KiB", "1.3 GiB"
std::string format_bytes(int64_t bytes);
// 1234567 as "1,234,567"
std::string format_thousands(int64_t value);

struct ProgressState {
  int64_t step = 0, total_steps = 0;
  double loss = 0, tokens_per_second = 0, sol_percent = 0;
  double eta_seconds = 0;               // NaN while not known
  std::optional<double> val_loss = {};  // the latest one
};

struct LineStyle {
  int columns = 80;      // of the terminal; the line stays one column below it, so that it never wraps
  bool color = false;    // ANSI colours
  bool unicode = false;  // line-drawing characters in the bar; '#' and '-' otherwise
};

// "120/2000 [####------] 6% loss 3.412 val 3.502 12.3k tok/s 41% SoL ETA 1m20s". What does not fit goes, the least
// important part first: the bar shrinks and goes, then validation loss, speed of light, speed, percentage, time left.
// Step and loss stay, cut at the edge.
std::string format_progress_line(const ProgressState& state, const LineStyle& style);
// The same facts for a log: "step 120/2000  loss 3.4120  lr 3.00e-04  grad norm 0.81  12.3k tok/s  ...".
std::string format_plain_line(const ProgressState& state, const StepRecord& record);

// The bytes of text that show one column each; ANSI colours show none and every other code point shows one.
int64_t display_columns(std::string_view text);

// Time left, from the wall time that steps take now, evaluation and saving included: an exponential average over
// about 20 steps. The steps a resumed run did not do itself play no part, except as the first guess.
class EtaEstimate {
 public:
  // seconds_per_step_hint: of the run that is resumed, from its metrics; 0 where there is none.
  EtaEstimate(int64_t total_steps, double seconds_per_step_hint);
  void step_done(int64_t step, double now_seconds);  // now from a monotonic clock
  double seconds_left() const;                       // NaN until a step or a hint gives a measure

 private:
  int64_t total_steps_, last_step_ = -1;
  double last_seconds_ = 0, seconds_per_step_ = 0;
  int64_t measured_ = 0;
};

struct ProgressOptions {
  int64_t total_steps = 0;
  int64_t first_step = 0;            // steps that were done before this process
  double seconds_per_step_hint = 0;  // see EtaEstimate
  int64_t plain_every_steps = 10;    // train.log_every_steps
};

// Shows the steps of one run. The cursor is never hidden and the terminal's settings are never touched, so that no end
// of the process, SIGKILL included, leaves anything to restore. The width is asked for at each drawing, which follows a
// resized window without a signal handler. A terminal or pipe that is gone or takes nothing never stops the training:
// the constructor makes the process ignore SIGPIPE, a line that would have to wait is left out, and so are write
// errors.
class Progress {
 public:
  // Where the lines go: a terminal (live) or a log (plain).
  struct Output {
    bool live = false;
    LineStyle style;                              // live: columns is asked for again by `columns`
    std::function<int()> columns;                 // live
    std::function<void(std::string_view)> write;  // live: raw bytes to the terminal
    std::function<void(std::string_view)> print;  // plain: one line of the log
  };
  // stderr as it is: live on a terminal unless TERM=dumb; colours unless NO_COLOR is set; line drawing where the locale
  // says UTF-8.
  static Output stderr_output();

  Progress(const ProgressOptions& options, Clock& clock, Output output = stderr_output());
  ~Progress();  // as finish()
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // After each step. Draws at most ten times a second (live) or every plain_every_steps (plain); the last step, the
  // first of this process and those with a validation loss are always shown.
  void update(const StepRecord& record);
  // Leaves the last line standing and ends it.
  void finish();

 private:
  void draw(const ProgressState& state, const StepRecord& record);

  ProgressOptions options_;
  Clock& clock_;
  Output output_;
  EtaEstimate eta_;
  std::optional<double> val_loss_;
  std::optional<StepRecord> last_;
  double last_drawn_seconds_ = 0;
  bool drawn_ = false, last_is_drawn_ = false, finished_ = false;
};

}  // namespace octet
