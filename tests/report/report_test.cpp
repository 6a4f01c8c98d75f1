#include "tools/train/report.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "core/base/fault_file_system.h"
#include "tests/report/well_formed.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

StepRecord record_of(int64_t step) {
  StepRecord record{.step = step, .tokens = step * 4096, .loss = 3.0 + 6.0 * std::exp(-double(step) / 50), .lr = 1e-3};
  record.grad_norm = 1.0 + 50 * std::exp(-double(step));
  record.tokens_per_second = 2000;
  record.step_seconds = 2;
  record.sol_percent = 40;
  record.memory_bytes = {{"weights", 1 << 20}, {"activations", (1 << 20) + (step << 10)}};
  if (step % 50 == 0) record.val_loss = record.loss + 0.1, record.unigram_entropy = 6.5, record.bits_per_byte = 2.25;
  if (step % 10 == 0) {
    for (int64_t layer = 1; layer <= 3; ++layer) {
      record.experts.push_back(
          {.layer = layer, .max_violation = 4.0 / double(step), .entropy = 1.3, .entropy_ratio = 0.9});
      if (step % 100 == 0) record.experts.back().share = {0.5, 0.25, 0.25, 0.0}, record.experts.back().dead_experts = 1;
    }
    if (step > 100) record.slow_rank = {.rank = 2, .host = step < 200 ? "a<b" : "c", .percent = double(step) / 10};
    record.swiglu_clamped_percent = double(step) / 100;
    record.fp8 = {{"activation", 0.125, 0, 0}, {"grad_output", 1.5, 0.25, step == 20 ? 2 : 0}};
  }
  return record;
}

void write(FaultFileSystem& files, const std::string& path, const std::string& text) {
  files.write_atomically(path, text);
}

std::string metrics(int64_t steps) {
  std::string text;
  for (int64_t step = 1; step <= steps; ++step) text += to_json(record_of(step)) + "\n";
  return text;
}

const std::set<std::string> kHtmlWithoutEnd = {"meta"};

}  // namespace

TEST_CASE("smoothing keeps a straight line straight where it begins, and passes over gaps", "[report]") {
  CHECK(smooth({1, 2, 3, 4}, 0) == std::vector<double>{1, 2, 3, 4});
  CHECK(smooth({5, 4, 3, 2, 1, 0}, 2) == std::vector<double>{5, 4, 3, 2, 1.5, 1});
  CHECK(smooth({1, kNaN, 3}, 1) == std::vector<double>{1, 2, 3});
  CHECK(std::isnan(smooth({kNaN, kNaN, 3}, 0)[1]));
  CHECK(smooth({}, 3).empty());
}

TEST_CASE("the history has every column of the file", "[report]") {
  FaultFileSystem files;
  write(files, "/metrics.jsonl", metrics(200) + "{\"torn");
  const RunHistory history = read_history(files, "/metrics.jsonl");
  CHECK(history.step.size() == 200);
  CHECK(history.loss[99] == record_of(100).loss);
  CHECK(history.val_step == std::vector<double>{50, 100, 150, 200});
  CHECK(history.unigram_entropy == 6.5);
  CHECK(history.bits_per_byte == 2.25);
  CHECK(history.tokens == 200 * 4096);
  CHECK(history.seconds == 400);
  CHECK(history.lines_left_out == 1);
  CHECK(history.layers.size() == 3);
  CHECK(history.layers.at(2).step.size() == 20);
  CHECK(history.last_load_step == 200);
  CHECK(history.last_load.size() == 3);
  REQUIRE(history.fp8.size() == 2);
  CHECK(history.fp8[1].second.non_finite == 2);
  CHECK(history.clamped_step.size() == 20);
  CHECK(history.clamped_percent.back() == 2.0);
  REQUIRE(history.memory_bytes.size() == 2);
  CHECK(history.memory_bytes[1].second == (1 << 20) + (200 << 10));  // the peak
}

TEST_CASE("the report has every part, in one file that needs no other", "[report]") {
  FaultFileSystem files;
  files.make_directory("/run <1>");
  write(files, "/run <1>/metrics.jsonl", metrics(300));
  write(files, "/run <1>/config.yaml", "model: {layers: 4}  # <b>bold</b>\n");
  write(files, "/run <1>/samples.txt", std::string("once <script>alert(1)</script> \xff & upon") + '\0' + " a time");
  write_report(files, "/run <1>");
  const std::string html = files.content("/run <1>/report.html");
  CHECK(markup_fault(html, kHtmlWithoutEnd) == "");
  for (const char* part :
       {"run &lt;1&gt;", "unigram entropy", "validation", "Learning rate", "Gradient norm", "tokens per second",
        "Clamped by model.swiglu_limit", "Load of each expert at step 300",
        "layer 3, expert 2\n25.00% of the choices, 1.00 of the even share", "Max violation over the run", "grad_output",
        "activations", "Speed of light", "model: {layers: 4}",
        "once &lt;script&gt;alert(1)&lt;/script&gt; \uFFFD &amp; upon\uFFFD a time",
        "Experts without a token at step 300: 3.",
        "Rank 2 (host a&lt;b) was slower than the others, who waited for it in 15 % of the time (records of steps that "
        "say so: 9).",
        "2 elements of role grad_output were not finite", "&lt;b&gt;bold"}) {
    CAPTURE(part);
    CHECK(html.find(part) != std::string::npos);
  }
  for (const char* foreign : {"<script", "src=", "url(", "@import", "<link", "href="}) {
    CAPTURE(foreign);
    CHECK(html.find(foreign) == std::string::npos);
  }
  const std::string svg = files.content("/run <1>/loss.svg");
  CHECK(markup_fault(svg) == "");
  CHECK(svg.find("<svg") == 0);
  CHECK(svg.find("prefers-color-scheme:dark") != std::string::npos);
}

TEST_CASE("a report is drawn from whatever there is", "[report]") {
  FaultFileSystem files;
  SECTION("no step") { write(files, "/metrics.jsonl", ""); }
  SECTION("one step") { write(files, "/metrics.jsonl", metrics(1)); }
  SECTION("nothing finite") {
    StepRecord record{.step = 1, .loss = kNaN, .lr = kNaN, .grad_norm = kNaN};
    record.tokens_per_second = record.step_seconds = record.sol_percent = record.val_loss.emplace() = kNaN;
    record.skipped = true;
    record.experts = {{.layer = 0, .max_violation = kNaN, .share = {kNaN, kNaN}}};
    record.fp8 = {{"weight", kNaN, kNaN, 5}};
    write(files, "/metrics.jsonl", to_json(record) + "\n");
  }
  write_report(files, "/");
  CHECK(markup_fault(files.content("/report.html"), kHtmlWithoutEnd) == "");
  CHECK(markup_fault(files.content("/loss.svg")) == "");
}

TEST_CASE("only the newest part of long samples is shown", "[report]") {
  FaultFileSystem files;
  write(files, "/metrics.jsonl", metrics(2));
  write(files, "/samples.txt", "the oldest line\n" + std::string(200 << 10, 'x') + "\nthe newest line\n");
  write_report(files, "/");
  const std::string html = files.content("/report.html");
  CHECK(html.find("the oldest line") == std::string::npos);
  CHECK(html.find("the newest line") != std::string::npos);
  CHECK(html.size() < (200 << 10));
}

TEST_CASE("a directory without a run is refused with the way out", "[report]") {
  FaultFileSystem files;
  const Error error = error_of([&] { write_report(files, "/"); });
  CHECK(error.kind() == ErrorKind::kArgument);
  CHECK(error.report().what.find("metrics.jsonl") != std::string::npos);
  CHECK(error.report().fix.find("--out") != std::string::npos);
}

}  // namespace octet::test
