// metrics.jsonl: what a training run says about itself, one JSON object a line, one line a step, steps rising.
//   {"step": 40, "tokens": 327680, "loss": 3.41, "lr": 0.0003, "grad_norm": 0.82, "tokens_per_second": 2310.5,
//    "step_seconds": 3.5, "sol_percent": 41.25, ...}
// The keys are the member names of StepRecord, in its order; what has no value is left out. Numbers are the shortest
// text that reads back as the same double; one that is not finite is null and reads back as NaN.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/base/file_system.h"

namespace octet {

// How evenly the tokens of a global batch fall on the experts of one layer. load[e] counts (token, choice) pairs.
struct LoadStats {
  double max_violation =
      0;               // max_e load[e] / mean(load) - 1 (arXiv:2408.15664): 0 even, E - 1 all on one; 0 if no load
  double entropy = 0;  // -sum_e p[e] ln p[e], p = load / sum(load), in nats: ln E even, 0 all on one or no load
  double entropy_ratio = 0;  // entropy / ln E: 1 even, 0 all on one or no load; 1 where E is 1 and has load
  int64_t dead_experts = 0;  // experts with no load at all
};
LoadStats load_stats(std::span<const int64_t> load);
// load[e] / sum(load); all 0 where the sum is.
std::vector<double> load_share(std::span<const int64_t> load);

struct LayerLoad {
  int64_t layer = 0;
  double max_violation = 0, entropy = 0, entropy_ratio = 0;  // as in LoadStats
  int64_t dead_experts = 0;
  std::vector<double> share = {};  // of each expert, sums to 1; may be left out
};

// What quantising did to the tensors of one role since the record before.
struct Fp8Health {
  std::string role = {};         // "activation", "weight", "grad_output", "wgrad_activation" or "wgrad_grad"
  double flushed_percent = 0;    // non-zero elements that became zero
  double saturated_percent = 0;  // elements cut to 448
  int64_t non_finite = 0;        // elements that were NaN or infinite
};

// The rank that the others waited for (tools/train/slow_rank.h).
struct SlowRankRecord {
  int64_t rank = 0;
  std::string host = {};
  double percent = 0;  // of the time
};

struct StepRecord {
  int64_t step = 0;      // 1 for the first
  int64_t tokens = 0;    // trained on since the start of the run
  double loss = 0;       // nats per token, mean of the global batch, without balance losses
  double lr = 0;         // of this step
  double grad_norm = 0;  // global, before clipping
  double tokens_per_second = 0;
  double step_seconds = 0;
  double sol_percent = 0;                    // of the speed of light: model FLOP/s over what the machine's units can do
  bool skipped = false;                      // the update was not applied, because a number was not finite
  std::optional<double> val_loss = {};       // nats per token
  std::optional<double> bits_per_byte = {};  // of the validation text
  std::optional<double> unigram_entropy = {};  // nats per token: the loss of always guessing by token frequency
  std::optional<double> aux_loss = {};         // load-balance loss, weighted as added to the loss
  std::optional<double> z_loss = {};           // router z-loss, weighted as added to the loss
  std::vector<std::pair<std::string, int64_t>> memory_bytes = {};  // peak by category: weights, gradients, ...
  std::vector<LayerLoad> experts = {};                             // one for each MoE layer, at its interval
  std::vector<Fp8Health> fp8 = {};                                 // one for each role, at its interval
  std::optional<double> swiglu_clamped_percent = {};  // of gates and ups, by model.swiglu_limit, at its interval
  std::optional<SlowRankRecord> slow_rank = {};       // at its interval, where one is constantly slow
};

// One line without its newline, and back. `from_json` throws Error(kData) that says what is wrong with the line.
std::string to_json(const StepRecord& record);
StepRecord step_record_from_json(std::string_view line);

// Reads a file from its start, a piece at a time. Lines that are no record, a torn last one among them, and records
// whose step does not rise are left out and counted: a damaged log is no reason to lose the rest of it.
class MetricsReader {
 public:
  MetricsReader(FileSystem& files, const std::string& path);
  // False at the end.
  bool next(StepRecord& record);
  int64_t lines_left_out() const { return left_out_; }
  // The line of the record that next() gave last, as it stands in the file.
  std::string_view line() const { return line_; }

 private:
  bool next_line();

  std::unique_ptr<ReadableFile> file_;
  uint64_t offset_ = 0;
  std::string buffer_;
  size_t begin_ = 0;  // of what is unread in buffer_
  std::string line_;
  int64_t last_step_ = -1, left_out_ = 0;
};

// Appends records. Each goes to the file at once; sync() puts them on the disk, before a checkpoint is committed.
// A disk that refuses never stops the training: lines wait in memory, up to kMetricsLinesInMemory, and are tried again
// with the next one; the log says so once.
class MetricsWriter {
 public:
  // Continues after `resume_step`: records of later steps, and lines that are no record, are removed from the file
  // first, by an atomic rewrite. 0 begins anew.
  MetricsWriter(FileSystem& files, std::string path, int64_t resume_step);
  void append(const StepRecord& record);
  void sync();

 private:
  void flush();

  FileSystem& files_;
  std::string path_;
  std::unique_ptr<WritableFile> file_;
  std::deque<std::string> waiting_;
  bool torn_ = false;  // the last write failed and may have left half a line
  bool warned_ = false;
  int64_t dropped_ = 0;
};
inline constexpr size_t kMetricsLinesInMemory = 10000;

}  // namespace octet
