#include "tools/train/progress.h"

#include <fcntl.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

namespace octet::test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

ProgressState some_state() {
  return {.step = 1234,
          .total_steps = 20000,
          .loss = 3.41159,
          .tokens_per_second = 12345,
          .sol_percent = 41.25,
          .eta_seconds = 3725,
          .val_loss = 3.5};
}

// One character for each column.
std::string last_line(const std::string& written) {
  const size_t begin = written.rfind('\r');
  return written.substr(begin + 1, written.rfind("\033[K") - begin - 1);
}

StepRecord at_step(int64_t step, double loss = 2.0) {
  StepRecord record{.step = step, .tokens = step * 64, .loss = loss, .lr = 1e-3, .grad_norm = 0.5};
  record.tokens_per_second = 1000;
  record.sol_percent = 50;
  return record;
}

}  // namespace

TEST_CASE("times, counts and bytes for people", "[progress]") {
  CHECK(format_duration(0) == "0s");
  CHECK(format_duration(59.4) == "59s");
  CHECK(format_duration(59.6) == "1m00s");
  CHECK(format_duration(185) == "3m05s");
  CHECK(format_duration(7620) == "2h07m");
  CHECK(format_duration(5 * 86400 + 3 * 3600) == "5d03h");
  for (const double unknown : {kNaN, -1.0, double(INFINITY), 1e300}) CHECK(format_duration(unknown) == "?");

  CHECK(format_count(0) == "0");
  CHECK(format_count(831) == "831");
  CHECK(format_count(8.314) == "8.31");
  CHECK(format_count(999.6) == "1.00k");
  CHECK(format_count(12345) == "12.3k");
  CHECK(format_count(999600) == "1.00M");
  CHECK(format_count(-4e9) == "-4.00G");
  CHECK(format_count(kNaN) == "?");

  CHECK(format_bytes(0) == "0 B");
  CHECK(format_bytes(1023) == "1023 B");
  CHECK(format_bytes(4096) == "4.0 KiB");
  CHECK(format_bytes((int64_t(1) << 40) - 1) == "1.0 TiB");

  CHECK(format_thousands(0) == "0");
  CHECK(format_thousands(999) == "999");
  CHECK(format_thousands(-1000) == "-1,000");
  CHECK(format_thousands(1234567) == "1,234,567");
}

TEST_CASE("the live line has everything where there is room", "[progress]") {
  CHECK(format_progress_line(some_state(), {.columns = 120}) ==
        "1,234/20,000  [##----------------------------]  6%  loss 3.412  val 3.500  12.3k tok/s  41.2% SoL  ETA 1h02m");
  const std::string drawn = format_progress_line(some_state(), {.columns = 120, .color = false, .unicode = true});
  CHECK(drawn.find("\u2501\u2501\u2500") != std::string::npos);
  CHECK(display_columns(drawn) < 120);
}

TEST_CASE("the live line never reaches the last column, at any width", "[progress]") {
  for (const bool unicode : {false, true}) {
    for (const bool color : {false, true}) {
      int64_t last_columns = 0;
      for (int columns = 1; columns <= 200; ++columns) {
        const std::string line = format_progress_line(some_state(), {columns, color, unicode});
        CAPTURE(columns, line);
        CHECK(display_columns(line) <= std::max(columns - 1, 1));
        CHECK(line.find('\n') == std::string::npos);
        if (color) {  // every colour is ended
          size_t starts = 0, resets = 0;
          for (size_t at = line.find('\033'); at != std::string::npos; at = line.find('\033', at + 1)) {
            (line.compare(at, 4, "\033[0m") == 0 ? resets : starts) += 1;
          }
          CHECK(starts == resets);
        } else {
          CHECK(line.find('\033') == std::string::npos);
        }
        last_columns = display_columns(line);
      }
      CHECK(last_columns > 100);
    }
  }
}

TEST_CASE("what matters least goes first from a narrow line", "[progress]") {
  CHECK(format_progress_line(some_state(), {.columns = 80}) ==
        "1,234/20,000  6%  loss 3.412  val 3.500  12.3k tok/s  41.2% SoL  ETA 1h02m");
  CHECK(format_progress_line(some_state(), {.columns = 60}) == "1,234/20,000  6%  loss 3.412  12.3k tok/s  ETA 1h02m");
  CHECK(format_progress_line(some_state(), {.columns = 40}) == "1,234/20,000  6%  loss 3.412  ETA 1h02m");
  CHECK(format_progress_line(some_state(), {.columns = 39}) == "1,234/20,000  loss 3.412  ETA 1h02m");
  CHECK(format_progress_line(some_state(), {.columns = 26}) == "1,234/20,000  loss 3.412");
  CHECK(format_progress_line(some_state(), {.columns = 10}) == "1,234/20,");
}

TEST_CASE("numbers that are not finite are shown as such", "[progress]") {
  ProgressState state = some_state();
  state.loss = state.eta_seconds = state.sol_percent = kNaN;
  state.val_loss.reset();
  CHECK(format_progress_line(state, {.columns = 60}) == "1,234/20,000  [#--------]  6%  loss nan  12.3k tok/s  ETA ?");
}

TEST_CASE("the time left follows the steps of this process and survives a resume", "[progress]") {
  EtaEstimate fresh(100, 0);
  CHECK(std::isnan(fresh.seconds_left()));
  fresh.step_done(0, 50.0);
  CHECK(std::isnan(fresh.seconds_left()));
  fresh.step_done(1, 52.0);
  CHECK(fresh.seconds_left() == Approx(2.0 * 99));
  fresh.step_done(2, 53.0);
  CHECK(fresh.seconds_left() == Approx(1.5 * 98));  // the mean of the two

  EtaEstimate resumed(100, 2.0);
  resumed.step_done(60, 1e6);  // a clock that began long before
  CHECK(resumed.seconds_left() == Approx(2.0 * 40));
  for (int step = 61; step <= 90; ++step) resumed.step_done(step, 1e6 + (step - 60) * 3.0);
  CHECK(resumed.seconds_left() == Approx(3.0 * 10));
  for (int step = 91; step <= 105; ++step) resumed.step_done(step, 1e6 + (step - 60) * 3.0);
  CHECK(resumed.seconds_left() == 0.0);
}

TEST_CASE("on a terminal the line is redrawn in place, ten times a second at most", "[progress]") {
  ManualClock clock;
  std::string written;
  int writes = 0, columns = 100;
  Progress::Output output;
  output.live = true;
  output.columns = [&] { return columns; };
  output.write = [&](std::string_view text) { written += text, ++writes; };
  {
    Progress progress({.total_steps = 1000}, clock, output);
    for (int64_t step = 1; step <= 50; ++step) {
      clock.advance_ns(10'000'000);
      progress.update(at_step(step));
    }
    CHECK(writes == 5);  // at 10 ms, then each time 100 ms have passed
    CHECK(written.find('\n') == std::string::npos);
    CHECK(written.find("\033[?25l") == std::string::npos);  // the cursor is never hidden
    CHECK(display_columns(last_line(written)) > 60);
    columns = 30;  // the window is made narrow: the next drawing follows
    clock.advance_ns(200'000'000);
    progress.update(at_step(51));
    CHECK(display_columns(last_line(written)) < 30);
    progress.update(at_step(52, 7.5));
  }
  CHECK(written.find("52/1,000  loss 7.500") != std::string::npos);  // the last state stands when all is done
  CHECK(written.back() == '\n');
}

TEST_CASE("elsewhere lines come every few steps, and for what must not be missed", "[progress]") {
  ManualClock clock;
  std::vector<std::string> lines;
  Progress::Output output;
  output.print = [&](std::string_view line) { lines.emplace_back(line); };
  {
    Progress progress({.total_steps = 25, .plain_every_steps = 10}, clock, output);
    for (int64_t step = 1; step <= 25; ++step) {
      clock.advance_ns(2'000'000'000);
      StepRecord record = at_step(step);
      if (step == 13) record.val_loss = 1.75;
      progress.update(record);
    }
  }
  REQUIRE(lines.size() == 5);  // 1, 10, 13, 20, 25
  CHECK(lines[0] == "step 1/25  loss 2.0000  lr 1.00e-03  grad norm 0.500  1.00k tok/s  50.0% SoL  ETA 48s");
  CHECK(lines[2].find("val loss 1.7500") != std::string::npos);
  CHECK(lines[4].find("step 25/25") == 0);
  for (const std::string& line : lines) CHECK(line.find('\033') == std::string::npos);
}

TEST_CASE("a reader that goes away or stops reading never stops the training", "[progress]") {
  const bool closed = GENERATE(true, false);
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const int kept_stderr = ::dup(STDERR_FILENO);
  REQUIRE(::dup2(ends[1], STDERR_FILENO) >= 0);
  if (closed) {
    ::close(ends[0]);
  } else {
    ::fcntl(ends[1], F_SETFL, O_NONBLOCK);  // to fill the pipe; then waiting writes, as a program has them
    const std::string block(4096, ' ');
    while (::write(ends[1], block.data(), block.size()) > 0) {
    }
    ::fcntl(ends[1], F_SETFL, 0);
  }
  for (const bool live : {true, false}) {
    ManualClock clock;
    Progress::Output output = Progress::stderr_output();
    output.live = live;
    Progress progress({.total_steps = 5, .plain_every_steps = 1}, clock, output);
    for (int64_t step = 1; step <= 5; ++step) progress.update(at_step(step));
  }
  ::dup2(kept_stderr, STDERR_FILENO);
  ::close(kept_stderr);
  ::close(ends[1]);
  if (!closed) ::close(ends[0]);
  SUCCEED("all steps were shown or left out without waiting");
}

}  // namespace octet::test
