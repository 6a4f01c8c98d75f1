#include "tools/train/metrics.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "core/base/fault_file_system.h"
#include "tests/support/temporary_directory.h"

namespace octet::test {
namespace {

StepRecord full_record() {
  StepRecord record{.step = 40, .tokens = 327680, .loss = 1.0 / 3, .lr = 3e-4, .grad_norm = 0.82};
  record.tokens_per_second = 2310.5;
  record.step_seconds = 3.5;
  record.sol_percent = 41.25;
  record.skipped = true;
  record.val_loss = 3.5;
  record.bits_per_byte = 1.875;
  record.unigram_entropy = 6.25;
  record.aux_loss = 1e-5;
  record.z_loss = 0.0;
  record.swiglu_clamped_percent = 0.125;
  record.memory_bytes = {{"weights", 1 << 20}, {"optimizer", int64_t(1) << 40}};
  record.experts = {{.layer = 1, .max_violation = 0.5, .entropy = 2.0, .entropy_ratio = 0.96, .dead_experts = 0},
                    {.layer = 2, .max_violation = 7, .dead_experts = 7, .share = {1.0, 0.0}}};
  record.fp8 = {{.role = "wgrad_grad", .flushed_percent = 0.25, .saturated_percent = 0, .non_finite = 3}};
  record.slow_rank = {.rank = 3, .host = "node7", .percent = 12.5};
  return record;
}

StepRecord at_step(int64_t step) {
  StepRecord record{.step = step, .tokens = step * 100, .loss = 5.0 - double(step) * 0.1};
  return record;
}

constexpr const char* kPath = "/metrics.jsonl";

std::vector<int64_t> steps_in(FileSystem& files, int64_t* left_out = nullptr) {
  MetricsReader reader(files, kPath);
  std::vector<int64_t> steps;
  StepRecord record;
  while (reader.next(record)) steps.push_back(record.step);
  if (left_out != nullptr) *left_out = reader.lines_left_out();
  return steps;
}

}  // namespace

TEST_CASE("load_stats on loads made by hand", "[metrics]") {
  using Load = std::vector<int64_t>;
  SECTION("even") {
    const LoadStats stats = load_stats(Load(8, 5));
    CHECK(stats.max_violation == Approx(0.0).margin(1e-12));
    CHECK(stats.entropy == Approx(std::log(8.0)));
    CHECK(stats.entropy_ratio == Approx(1.0));
    CHECK(stats.dead_experts == 0);
  }
  SECTION("all on one") {
    const LoadStats stats = load_stats(Load{0, 0, 24, 0});
    CHECK(stats.max_violation == 3.0);
    CHECK(stats.entropy == 0.0);
    CHECK_FALSE(std::signbit(stats.entropy));
    CHECK(stats.entropy_ratio == 0.0);
    CHECK(stats.dead_experts == 3);
  }
  SECTION("half and half") {
    const LoadStats stats = load_stats(Load{10, 0, 10, 0});
    CHECK(stats.max_violation == 1.0);
    CHECK(stats.entropy == Approx(std::log(2.0)));
    CHECK(stats.entropy_ratio == Approx(0.5));
    CHECK(stats.dead_experts == 2);
  }
  SECTION("no tokens") {
    const LoadStats stats = load_stats(Load(4, 0));
    CHECK(stats.max_violation == 0.0);
    CHECK(stats.entropy == 0.0);
    CHECK(stats.entropy_ratio == 0.0);
    CHECK(stats.dead_experts == 4);
    CHECK(load_share(Load(4, 0)) == std::vector<double>(4, 0.0));
  }
  SECTION("one expert") {
    const LoadStats stats = load_stats(Load{7});
    CHECK(stats.max_violation == 0.0);
    CHECK(stats.entropy == 0.0);
    CHECK(stats.entropy_ratio == 1.0);
    CHECK(stats.dead_experts == 0);
  }
  CHECK(load_share(Load{1, 3}) == std::vector<double>{0.25, 0.75});
  CHECK_THROWS_AS(load_stats(Load{}), Error);
  CHECK_THROWS_AS(load_stats(Load{3, -1}), Error);
}

TEST_CASE("a record reads back as it was written", "[metrics]") {
  for (const StepRecord& record : {full_record(), at_step(1)}) {
    const std::string line = to_json(record);
    CAPTURE(line);
    CHECK(line.find('\n') == std::string::npos);
    const StepRecord back = step_record_from_json(line);
    CHECK(to_json(back) == line);
    CHECK(back.loss == record.loss);  // the last bit included
    CHECK(back.skipped == record.skipped);
    CHECK(back.val_loss == record.val_loss);
    CHECK(back.z_loss == record.z_loss);
    CHECK(back.swiglu_clamped_percent == record.swiglu_clamped_percent);
    CHECK(back.memory_bytes == record.memory_bytes);
    REQUIRE(back.experts.size() == record.experts.size());
    for (size_t i = 0; i < back.experts.size(); ++i) CHECK(back.experts[i].share == record.experts[i].share);
    CHECK(back.fp8.size() == record.fp8.size());
    CHECK(back.slow_rank.has_value() == record.slow_rank.has_value());
  }
}

TEST_CASE("numbers that are not finite are null in the file and NaN in a record", "[metrics]") {
  StepRecord record = at_step(3);
  record.loss = std::numeric_limits<double>::infinity();
  record.grad_norm = record.val_loss.emplace() = std::numeric_limits<double>::quiet_NaN();
  const std::string line = to_json(record);
  CHECK(line.find("\"loss\": null") != std::string::npos);
  const StepRecord back = step_record_from_json(line);
  CHECK(std::isnan(back.loss));
  CHECK(std::isnan(back.grad_norm));
  REQUIRE(back.val_loss.has_value());
  CHECK(std::isnan(*back.val_loss));
}

TEST_CASE("a line that is no record is refused", "[metrics]") {
  const std::string good = to_json(at_step(3));
  for (const std::string& line : {std::string("{}"), std::string("[]"), std::string("nul"), std::string("\xff"),
                                  good.substr(0, good.size() - 1), good + good, "{\"step\":\"3\"," + good.substr(10)}) {
    CAPTURE(line);
    CHECK(error_of([&, text = line] { step_record_from_json(text); }).kind() == ErrorKind::kData);
  }
}

TEST_CASE("the file has one record a step, and a torn last line costs only itself", "[metrics]") {
  FaultFileSystem files;
  {
    MetricsWriter writer(files, kPath, 0);
    for (int64_t step = 1; step <= 5; ++step) {
      writer.append(at_step(step));
      CHECK(steps_in(files).back() == step);  // each stands in the file at once
    }
  }
  const std::string text = files.content(kPath);
  const size_t last_line = text.rfind('\n', text.size() - 2) + 1;
  for (size_t cut = last_line; cut < text.size(); ++cut) {
    files.content(kPath) = text.substr(0, cut);
    int64_t left_out = -1;
    CHECK(steps_in(files, &left_out) == std::vector<int64_t>{1, 2, 3, 4});
    CHECK(left_out == (cut > last_line ? 1 : 0));
  }
}

TEST_CASE("damage in the middle costs only its own lines", "[metrics]") {
  FaultFileSystem files;
  files.create(kPath);
  files.content(kPath) = to_json(at_step(1)) + "\n\n{\"step\":2\n" + to_json(at_step(3)) + "\n" + std::string(3, '\0') +
                         "\n" + to_json(at_step(2)) + "\n" + to_json(at_step(4)) + "\n";
  int64_t left_out = 0;
  CHECK(steps_in(files, &left_out) == std::vector<int64_t>{1, 3, 4});
  CHECK(left_out == 3);
}

TEST_CASE("a line longer than one read is read whole, and one without end is passed over", "[metrics]") {
  FaultFileSystem files;
  files.create(kPath);
  StepRecord wide = at_step(2);
  wide.experts = {{.layer = 0, .share = std::vector<double>(200000, 1.0 / 3)}};  // 4 MB
  files.content(kPath) = to_json(at_step(1)) + "\n" + to_json(wide) + "\n" + std::string(size_t(70) << 20, ' ') + "\n" +
                         to_json(at_step(3)) + "\n";
  int64_t left_out = 0;
  CHECK(steps_in(files, &left_out) == std::vector<int64_t>{1, 2, 3});
  CHECK(left_out == 1);
}

TEST_CASE("a resumed run drops what came after its checkpoint", "[metrics]") {
  FaultFileSystem files;
  {
    MetricsWriter writer(files, kPath, 0);
    for (int64_t step = 1; step <= 7; ++step) writer.append(at_step(step));
  }
  const bool torn = GENERATE(false, true);
  if (torn) files.content(kPath) += "{\"step\":8,\"to";
  const int64_t resume_step = GENERATE(0, 4, 7, 100);
  CAPTURE(torn, resume_step);
  StepRecord next = at_step(resume_step + 1);
  next.loss = 42;
  {
    MetricsWriter writer(files, kPath, resume_step);
    writer.append(next);
  }
  std::string want;
  for (int64_t step = 1; step <= std::min<int64_t>(7, resume_step); ++step) want += to_json(at_step(step)) + "\n";
  CHECK(files.content(kPath) == want + to_json(next) + "\n");
}

TEST_CASE("what was synced before a power loss is there after it", "[metrics]") {
  FaultFileSystem files;
  MetricsWriter writer(files, kPath, 0);
  for (int64_t step = 1; step <= 3; ++step) writer.append(at_step(step));
  writer.sync();
  files.sync_directory("/");
  for (int64_t step = 4; step <= 6; ++step) writer.append(at_step(step));
  for (uint64_t seed = 0; seed < 64; ++seed) {
    FaultFileSystem after = files.after_power_loss(seed);
    const std::vector<int64_t> steps = steps_in(after);
    CAPTURE(seed, steps.size());
    REQUIRE(steps.size() >= 3);
    CHECK(std::vector<int64_t>(steps.begin(), steps.begin() + 3) == std::vector<int64_t>{1, 2, 3});
  }
}

TEST_CASE("a full disk costs no record once it has room again", "[metrics]") {
  FaultFileSystem files;
  MetricsWriter writer(files, kPath, 0);
  writer.append(at_step(1));
  files.fail_call(files.calls(), ENOSPC, /*from_then_on=*/true);
  for (int64_t step = 2; step <= 4; ++step) writer.append(at_step(step));
  writer.sync();
  files.restart();
  CHECK(steps_in(files) == std::vector<int64_t>{1});
  writer.append(at_step(5));
  CHECK(steps_in(files) == std::vector<int64_t>{1, 2, 3, 4, 5});
}

}  // namespace octet::test
