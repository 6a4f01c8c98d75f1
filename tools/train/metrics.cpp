#include "tools/train/metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/io/json.h"

namespace octet {
namespace {

constexpr uint64_t kReadBytes = 1 << 20;
// A line with the loads of 1000 layers of 1000 experts has 20 MB; a longer one is damage.
constexpr size_t kLongestLine = 64 << 20;

Json number(double value) { return std::isfinite(value) ? Json(value) : Json(); }

void set_if_any(Json& object, std::string_view key, const std::optional<double>& value) {
  if (value) object.set(key, number(*value));
}

double number(const JsonCursor& value) {
  return value.value().is_null() ? std::numeric_limits<double>::quiet_NaN() : value.as_double();
}

std::optional<double> number_if_any(const JsonCursor& object, std::string_view key) {
  const std::optional<JsonCursor> value = object.find(key);
  return value ? std::optional<double>(number(*value)) : std::nullopt;
}

}  // namespace

std::string to_json(const StepRecord& record) {
  Json json = Json::object();
  json.set("step", record.step);
  json.set("tokens", record.tokens);
  json.set("loss", number(record.loss));
  json.set("lr", number(record.lr));
  json.set("grad_norm", number(record.grad_norm));
  json.set("tokens_per_second", number(record.tokens_per_second));
  json.set("step_seconds", number(record.step_seconds));
  json.set("sol_percent", number(record.sol_percent));
  if (record.skipped) json.set("skipped", true);
  set_if_any(json, "val_loss", record.val_loss);
  set_if_any(json, "bits_per_byte", record.bits_per_byte);
  set_if_any(json, "unigram_entropy", record.unigram_entropy);
  set_if_any(json, "aux_loss", record.aux_loss);
  set_if_any(json, "z_loss", record.z_loss);
  if (!record.memory_bytes.empty()) {
    Json memory = Json::object();
    for (const auto& [category, bytes] : record.memory_bytes) memory.set(category, bytes);
    json.set("memory_bytes", std::move(memory));
  }
  if (!record.experts.empty()) {
    Json layers = Json::array();
    for (const LayerLoad& load : record.experts) {
      Json layer = Json::object();
      layer.set("layer", load.layer);
      layer.set("max_violation", number(load.max_violation));
      layer.set("entropy", number(load.entropy));
      layer.set("entropy_ratio", number(load.entropy_ratio));
      layer.set("dead_experts", load.dead_experts);
      if (!load.share.empty()) {
        Json shares = Json::array();
        for (const double share : load.share) shares.push_back(number(share));
        layer.set("share", std::move(shares));
      }
      layers.push_back(std::move(layer));
    }
    json.set("experts", std::move(layers));
  }
  if (!record.fp8.empty()) {
    Json roles = Json::array();
    for (const Fp8Health& health : record.fp8) {
      Json role = Json::object();
      role.set("role", health.role);
      role.set("flushed_percent", number(health.flushed_percent));
      role.set("saturated_percent", number(health.saturated_percent));
      role.set("non_finite", health.non_finite);
      roles.push_back(std::move(role));
    }
    json.set("fp8", std::move(roles));
  }
  set_if_any(json, "swiglu_clamped_percent", record.swiglu_clamped_percent);
  if (record.slow_rank) {
    const SlowRankRecord& slow = *record.slow_rank;
    json.set("slow_rank",
             Json::object().set("rank", slow.rank).set("host", slow.host).set("percent", number(slow.percent)));
  }
  return json.text();
}

StepRecord step_record_from_json(std::string_view line) {
  const JsonSource source{.kind = ErrorKind::kData, .file = "metrics.jsonl"};
  const Json json = parse_json(line, source);
  const JsonCursor members(json, source);
  StepRecord record;
  record.step = members["step"].as_int64(0);
  record.tokens = members["tokens"].as_int64(0);
  record.loss = number(members["loss"]);
  record.lr = number(members["lr"]);
  record.grad_norm = number(members["grad_norm"]);
  record.tokens_per_second = number(members["tokens_per_second"]);
  record.step_seconds = number(members["step_seconds"]);
  record.sol_percent = number(members["sol_percent"]);
  if (const auto skipped = members.find("skipped")) record.skipped = skipped->as_bool();
  record.val_loss = number_if_any(members, "val_loss");
  record.bits_per_byte = number_if_any(members, "bits_per_byte");
  record.unigram_entropy = number_if_any(members, "unigram_entropy");
  record.aux_loss = number_if_any(members, "aux_loss");
  record.z_loss = number_if_any(members, "z_loss");
  if (const auto memory = members.find("memory_bytes")) {
    const Json::Object* categories = memory->value().if_object();
    if (categories == nullptr) memory->refuse("is no object; wanted bytes by category");
    for (const auto& [category, bytes] : *categories) {
      record.memory_bytes.emplace_back(category, (*memory)[category].as_int64(0));
    }
  }
  if (const auto layers = members.find("experts")) {
    for (size_t i = 0; i < layers->size(); ++i) {
      const JsonCursor layer = layers->at(i);
      LayerLoad& load = record.experts.emplace_back();
      load.layer = layer["layer"].as_int64(0);
      load.max_violation = number(layer["max_violation"]);
      load.entropy = number(layer["entropy"]);
      load.entropy_ratio = number(layer["entropy_ratio"]);
      load.dead_experts = layer["dead_experts"].as_int64(0);
      if (const auto shares = layer.find("share")) {
        for (size_t e = 0; e < shares->size(); ++e) load.share.push_back(number(shares->at(e)));
      }
    }
  }
  if (const auto roles = members.find("fp8")) {
    for (size_t i = 0; i < roles->size(); ++i) {
      const JsonCursor role = roles->at(i);
      record.fp8.push_back({.role = role["role"].as_string(),
                            .flushed_percent = number(role["flushed_percent"]),
                            .saturated_percent = number(role["saturated_percent"]),
                            .non_finite = role["non_finite"].as_int64(0)});
    }
  }
  record.swiglu_clamped_percent = number_if_any(members, "swiglu_clamped_percent");
  if (const auto slow = members.find("slow_rank")) {
    record.slow_rank = {.rank = (*slow)["rank"].as_int64(0),
                        .host = (*slow)["host"].as_string(),
                        .percent = number((*slow)["percent"])};
  }
  return record;
}

MetricsReader::MetricsReader(FileSystem& files, const std::string& path) : file_(files.open(path)) {}

bool MetricsReader::next_line() {
  size_t searched = begin_;
  for (;;) {
    const size_t end = buffer_.find('\n', searched);
    if (end != std::string::npos) {
      line_.assign(buffer_, begin_, end - begin_);
      begin_ = end + 1;
      return true;
    }
    const uint64_t bytes = std::min(kReadBytes, file_->size() - offset_);
    if (bytes == 0) {
      // What stands behind the last newline was being written when the run ended.
      left_out_ += begin_ < buffer_.size();
      begin_ = buffer_.size();
      return false;
    }
    buffer_.erase(0, begin_);
    begin_ = 0;
    if (buffer_.size() > kLongestLine) buffer_.erase(1);  // what follows is no record, whatever it holds
    searched = buffer_.size();
    buffer_.resize(searched + bytes);
    file_->read_at(offset_, buffer_.data() + searched, bytes);
    offset_ += bytes;
  }
}

bool MetricsReader::next(StepRecord& record) {
  while (next_line()) {
    if (line_.empty()) continue;
    try {
      record = step_record_from_json(line_);
    } catch (const Error&) {
      ++left_out_;
      continue;
    }
    if (record.step <= last_step_) {
      ++left_out_;
      continue;
    }
    last_step_ = record.step;
    return true;
  }
  return false;
}

MetricsWriter::MetricsWriter(FileSystem& files, std::string path, int64_t resume_step)
    : files_(files), path_(std::move(path)) {
  if (files_.exists(path_)) {
    MetricsReader reader(files_, path_);
    StepRecord record;
    std::string kept;
    bool is_whole = true;
    while (reader.next(record)) {
      if (record.step > resume_step) {
        is_whole = false;
        break;
      }
      kept.append(reader.line()) += '\n';
    }
    if (!is_whole || reader.lines_left_out() > 0) files_.write_atomically(path_, kept);
  }
  file_ = files_.append_to(path_);
}

void MetricsWriter::append(const StepRecord& record) {
  waiting_.push_back(to_json(record) + '\n');
  flush();
  if (waiting_.size() > kMetricsLinesInMemory) {
    waiting_.pop_front();
    ++dropped_;
  }
}

void MetricsWriter::flush() {
  try {
    if (torn_) {
      // Ends the half line, which readers leave out, so that the next one stands alone.
      file_->append("\n", 1);
      torn_ = false;
    }
    while (!waiting_.empty()) {
      torn_ = true;
      file_->append(waiting_.front().data(), waiting_.front().size());
      torn_ = false;
      waiting_.pop_front();
    }
    if (warned_) {
      log_info("{} takes records again; {} were lost", path_, dropped_);
      warned_ = false;
    }
  } catch (const Error& error) {
    if (!warned_) log_warning("{}; training goes on, the record of its steps waits in memory", error.report().what);
    warned_ = true;
  }
}

void MetricsWriter::sync() {
  try {
    file_->sync();
  } catch (const Error& error) {
    log_warning("{}; training goes on", error.report().what);
  }
}

LoadStats load_stats(std::span<const int64_t> load) {
  require(!load.empty(), "load_stats: no experts; wanted 1 or more");
  LoadStats stats;
  int64_t total = 0, largest = 0;
  for (const int64_t count : load) {
    require(count >= 0, "load_stats: a load is {}; wanted 0 or more", count);
    total += count;
    largest = std::max(largest, count);
    stats.dead_experts += count == 0;
  }
  if (total == 0) return stats;
  const double experts = double(load.size());
  stats.max_violation = double(largest) / (double(total) / experts) - 1;
  for (const double p : load_share(load)) {
    if (p > 0) stats.entropy -= p * std::log(p);
  }
  stats.entropy = std::max(stats.entropy, 0.0);  // one expert with all: -1 ln 1 is -0
  stats.entropy_ratio = load.size() == 1 ? 1.0 : stats.entropy / std::log(experts);
  return stats;
}

std::vector<double> load_share(std::span<const int64_t> load) {
  int64_t total = 0;
  for (const int64_t count : load) total += count;
  std::vector<double> share(load.size(), 0.0);
  for (size_t e = 0; e < load.size() && total > 0; ++e) share[e] = double(load[e]) / double(total);
  return share;
}

}  // namespace octet
