// The page a run leaves behind: report.html, one file that needs no other, and loss.svg, its first chart.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/base/file_system.h"
#include "tools/train/metrics.h"

namespace octet {

// metrics.jsonl by column.
struct RunHistory {
  std::vector<double> step, loss, lr, grad_norm, tokens_per_second, sol_percent;
  std::vector<double> val_step, val_loss;
  std::vector<double> clamped_step, clamped_percent;  // of gates and ups, by model.swiglu_limit
  std::optional<double> bits_per_byte;                // of the last validation
  std::optional<double> unigram_entropy;              // nats per token
  int64_t tokens = 0, skipped_steps = 0, lines_left_out = 0;
  double seconds = 0;  // sum of step_seconds

  struct Layer {
    std::vector<double> step, max_violation;
  };
  std::map<int64_t, Layer> layers;
  std::vector<LayerLoad> last_load;  // of the last record that has shares
  int64_t last_load_step = 0;

  struct Slow {
    int64_t intervals = 0;
    double percent_sum = 0;
  };
  std::map<std::pair<int64_t, std::string>, Slow> slow_ranks;  // by rank and host

  struct Role {
    std::vector<double> flushed_percent, saturated_percent;
    int64_t non_finite = 0;  // in all
  };
  std::vector<std::pair<std::string, Role>> fp8;              // in order of appearance
  std::vector<std::pair<std::string, int64_t>> memory_bytes;  // the largest of each category
};
RunHistory read_history(FileSystem& files, const std::string& metrics_path);

// Mean over up to `radius` values on either side; near the start as many on the right as there are on the left, so that
// a falling curve is not bent. Values that are not finite are left out.
std::vector<double> smooth(const std::vector<double>& values, int64_t radius);

// The loss curve as a file of its own: each step, smoothed, validation, and the unigram entropy where it is known.
std::string render_loss_svg(const RunHistory& history, const std::string& title);

struct ReportTexts {
  std::string run_name, samples, config;
};
std::string render_report(const RunHistory& history, const ReportTexts& texts);

// Reads metrics.jsonl, and config.yaml and samples.txt where they are, and writes report.html and loss.svg beside them.
void write_report(FileSystem& files, const std::string& run_dir);

}  // namespace octet
