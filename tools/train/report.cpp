#include "tools/train/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "core/base/error.h"
#include "tools/train/plot.h"
#include "tools/train/progress.h"

namespace octet {
namespace {

constexpr int kFullWidth = 960, kHalfWidth = 470;  // CSS pixels
constexpr uint64_t kSamplesShownBytes = 64 << 10;  // the newest part of samples.txt
constexpr size_t kHeatColumns = 96;                // of the map over steps
constexpr double kLogScaleRatio = 30;              // a gradient norm that varies more is drawn on a logarithmic axis

double median(std::vector<double> values) {
  std::erase_if(values, [](double value) { return !std::isfinite(value); });
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  const auto middle = values.begin() + int64_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

int64_t smoothing_radius(size_t steps) { return std::clamp<int64_t>(int64_t(steps) / 60, 0, 500); }

std::string fixed(double value, int digits) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : std::string("not finite");
}

Chart loss_chart(const RunHistory& history, std::string title) {
  Chart chart{.title = std::move(title), .x_label = "step", .y_label = "nats per token", .series = {}};
  const int64_t radius = smoothing_radius(history.step.size());
  if (radius > 0) {
    chart.series.push_back({"each step", "blue", Mark::kFaintLine, history.step, history.loss});
    chart.series.push_back(
        {fmt::format("mean of ±{} steps", radius), "blue", Mark::kLine, history.step, smooth(history.loss, radius)});
  } else {
    chart.series.push_back({"training loss", "blue", Mark::kLine, history.step, history.loss});
  }
  if (!history.val_step.empty()) {
    chart.series.push_back({"validation", "orange", Mark::kPoints, history.val_step, history.val_loss});
  }
  if (history.unigram_entropy && !history.step.empty()) {
    chart.series.push_back({"unigram entropy",
                            "grey",
                            Mark::kDashedLine,
                            {history.step.front(), history.step.back()},
                            {*history.unigram_entropy, *history.unigram_entropy}});
  }
  return chart;
}

std::string small_chart(const char* title, const char* unit, const char* color, const std::vector<double>& step,
                        const std::vector<double>& values, bool log_y, bool smoothed) {
  Chart chart{.title = title, .x_label = "step", .y_label = unit, .series = {}, .width = kHalfWidth, .height = 230};
  chart.log_y = log_y;
  chart.zero_y = !log_y;
  const int64_t radius = smoothed ? smoothing_radius(values.size()) : 0;
  if (radius > 0) chart.series.push_back({"each step", color, Mark::kFaintLine, step, values});
  chart.series.push_back({radius > 0 ? "smoothed" : title, color, Mark::kLine, step, smooth(values, radius)});
  return fmt::format("<figure><h3>{}</h3>\n{}</figure>\n", title, render_chart(chart));
}

bool spans_decades(const std::vector<double>& values) {
  double least = INFINITY, most = 0;
  for (const double value : values) {
    if (std::isfinite(value) && value > 0) least = std::min(least, value), most = std::max(most, value);
  }
  return most > kLogScaleRatio * least;
}

// Share of the choices against the even share, on a scale of octaves: 1/4 and 4 times the even share are full colour.
std::string load_map(const RunHistory& history) {
  size_t experts = 0;
  for (const LayerLoad& layer : history.last_load) experts = std::max(experts, layer.share.size());
  if (experts == 0) return "";
  HeatMap map{.title = "Load of each expert",
              .x_label = "expert",
              .y_label = "layer",
              .row_names = {},
              .column_names = {},
              .cells = {},
              .key = {},
              .width = kFullWidth};
  map.key = {{-1.0, "1/4 or less"}, {-0.5, "1/2"}, {0.0, "even share"}, {0.5, "2x"}, {1.0, "4x or more"}};
  for (size_t e = 0; e < experts; ++e) map.column_names.push_back(fmt::format("{}", e));
  for (size_t row = 0; row < history.last_load.size(); ++row) {
    const LayerLoad& layer = history.last_load[row];
    map.row_names.push_back(fmt::format("{}", layer.layer));
    for (size_t e = 0; e < layer.share.size(); ++e) {
      const double ratio = layer.share[e] * double(layer.share.size());
      map.cells.push_back({.row = int64_t(row),
                           .column = int64_t(e),
                           .strength = ratio > 0 ? std::min(std::abs(std::log2(ratio)) / 2, 1.0) : 1.0,
                           .low = ratio < 1,
                           .dead = layer.share[e] == 0,
                           .hover = fmt::format("layer {}, expert {}\n{:.2f}% of the choices, {:.2f} of the even share",
                                                layer.layer, e, layer.share[e] * 100, ratio)});
    }
  }
  return fmt::format(
      "<h3>Load of each expert at step {}</h3>\n"
      "<p class=\"note\">Share of the layer's (token, expert) choices against an even share. A cross marks "
      "an expert that got none.</p>\n{}",
      format_thousands(history.last_load_step), render_heat_map(map));
}

// The worst imbalance of each layer, the largest value of each column's steps.
std::string violation_map(const RunHistory& history) {
  std::set<double> all_steps;
  for (const auto& [layer, series] : history.layers) all_steps.insert(series.step.begin(), series.step.end());
  if (all_steps.empty()) return "";
  const std::vector<double> steps(all_steps.begin(), all_steps.end());
  const size_t columns = std::min(steps.size(), kHeatColumns);
  const auto column_of = [&](double step) {
    const size_t at = size_t(std::lower_bound(steps.begin(), steps.end(), step) - steps.begin());
    return at * columns / steps.size();
  };
  double largest = 1;
  for (const auto& [layer, series] : history.layers) {
    for (const double value : series.max_violation) {
      if (std::isfinite(value)) largest = std::max(largest, value);
    }
  }
  const auto strength = [&](double violation) { return std::log1p(violation) / std::log1p(largest); };
  HeatMap map{.title = "Largest overload of an expert over the run",
              .x_label = "step",
              .y_label = "layer",
              .row_names = {},
              .column_names = std::vector<std::string>(columns),
              .cells = {},
              .key = {},
              .width = kFullWidth};
  for (const double step : all_steps) {
    std::string& name = map.column_names[column_of(step)];
    if (name.empty()) name = tick_label(step);
  }
  for (const double share : {0.0, 1.0 / 3, 2.0 / 3, 1.0}) {
    map.key.push_back({share, fmt::format("{:.2g}", std::expm1(share * std::log1p(largest)))});
  }
  for (const auto& [layer, series] : history.layers) {
    const int64_t row = int64_t(map.row_names.size());
    map.row_names.push_back(fmt::format("{}", layer));
    std::vector<double> worst(columns, -1), from(columns, INFINITY), to(columns, 0);
    for (size_t i = 0; i < series.step.size(); ++i) {
      if (!std::isfinite(series.max_violation[i])) continue;
      const size_t c = column_of(series.step[i]);
      worst[c] = std::max(worst[c], series.max_violation[i]);
      from[c] = std::min(from[c], series.step[i]), to[c] = std::max(to[c], series.step[i]);
    }
    for (size_t c = 0; c < columns; ++c) {
      if (worst[c] < 0) continue;
      const std::string at = from[c] == to[c] ? fmt::format("step {}", int64_t(from[c]))
                                              : fmt::format("steps {} to {}", int64_t(from[c]), int64_t(to[c]));
      map.cells.push_back({.row = row,
                           .column = int64_t(c),
                           .strength = strength(worst[c]),
                           .hover = fmt::format("layer {}, {}\nmax violation {:.3f}", layer, at, worst[c])});
    }
  }
  return "<h3>Max violation over the run</h3>\n"
         "<p class=\"note\">Load of the busiest expert over the mean load, less 1: 0 is even, and with E experts E "
         "&minus; 1 "
         "is all on one.</p>\n" +
         render_heat_map(map);
}

std::string load_table(const RunHistory& history) {
  std::string html =
      "<table><thead><tr><th>Layer</th><th>Max violation</th><th>Entropy, nats</th><th>Entropy / ln E</th>"
      "<th>Experts without load</th></tr></thead><tbody>\n";
  for (const LayerLoad& layer : history.last_load) {
    html += fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n", layer.layer,
                        fixed(layer.max_violation, 3), fixed(layer.entropy, 3), fixed(layer.entropy_ratio, 4),
                        layer.dead_experts);
  }
  return html + "</tbody></table>\n";
}

std::string fp8_table(const RunHistory& history) {
  std::string html =
      "<table><thead><tr><th>Tensors</th><th>Flushed to zero, last</th><th>largest</th><th>over the run</th>"
      "<th>Saturated, last</th><th>largest</th><th>Not finite, in all</th></tr></thead><tbody>\n";
  const auto largest = [](const std::vector<double>& values) {
    double most = 0;
    for (const double value : values) most = std::max(most, value);
    return most;
  };
  for (const auto& [role, health] : history.fp8) {
    html += fmt::format(
        "<tr><td>{}</td><td>{:.4g}%</td><td>{:.4g}%</td><td>{}</td><td>{:.4g}%</td><td>{:.4g}%</td><td>{}</td></tr>\n",
        escape_markup(role), health.flushed_percent.back(), largest(health.flushed_percent),
        render_sparkline(health.flushed_percent, role + ": flushed to zero over the run"),
        health.saturated_percent.back(), largest(health.saturated_percent), format_thousands(health.non_finite));
  }
  return html + "</tbody></table>\n";
}

std::string memory_section(const RunHistory& history) {
  int64_t total = 0;
  for (const auto& [category, bytes] : history.memory_bytes) total += bytes;
  std::string bar, rows;
  constexpr const char* kColors[] = {"blue", "orange", "teal", "violet", "grey"};
  size_t i = 0;
  for (const auto& [category, bytes] : history.memory_bytes) {
    const double percent = total > 0 ? 100.0 * double(bytes) / double(total) : 0;
    const char* color = kColors[i++ % std::size(kColors)];
    const std::string name = escape_markup(category);
    bar += fmt::format("<span class=\"bg-{}\" style=\"width:{:.3f}%\" title=\"{}: {}\"></span>", color, percent, name,
                       format_bytes(bytes));
    rows += fmt::format("<tr><td><i class=\"bg-{}\"></i>{}</td><td>{}</td><td>{:.1f}%</td></tr>\n", color, name,
                        format_bytes(bytes), percent);
  }
  return fmt::format(
      "<div class=\"bar\" role=\"img\" aria-label=\"Memory by category\">{}</div>\n"
      "<table><thead><tr><th>Category</th><th>Peak</th><th>Share</th></tr></thead><tbody>\n{}"
      "<tr class=\"sum\"><td>Sum of the peaks</td><td>{}</td><td></td></tr></tbody></table>\n",
      bar, rows, format_bytes(total));
}

std::string tile(std::string_view name, std::string_view value, std::string_view note) {
  return fmt::format("<div class=\"tile\"><div>{}</div><strong>{}</strong><span>{}</span></div>\n", escape_markup(name),
                     escape_markup(value), escape_markup(note));
}

std::string tiles(const RunHistory& history) {
  const std::vector<double> smoothed = smooth(history.loss, smoothing_radius(history.loss.size()));
  std::string html = tile("Training loss", fixed(smoothed.back(), 3),
                          fmt::format("nats per token, from {}", fixed(history.loss.front(), 3)));
  if (!history.val_loss.empty()) {
    const auto best = std::min_element(history.val_loss.begin(), history.val_loss.end(), [](double a, double b) {
      return std::isfinite(a) && (!std::isfinite(b) || a < b);
    });
    const double at = history.val_step[size_t(best - history.val_loss.begin())];
    html += tile("Validation loss", fixed(history.val_loss.back(), 3),
                 history.bits_per_byte
                     ? fmt::format("{} bits per byte; best {} at step {}", fixed(*history.bits_per_byte, 3),
                                   fixed(*best, 3), format_thousands(int64_t(at)))
                     : fmt::format("best {} at step {}", fixed(*best, 3), format_thousands(int64_t(at))));
  }
  html += tile("Steps", format_thousands(int64_t(history.step.back())),
               fmt::format("{} tokens in {}", format_count(double(history.tokens)), format_duration(history.seconds)));
  html += tile("Speed", format_count(median(history.tokens_per_second)), "tokens per second, median");
  if (const double sol = median(history.sol_percent); std::isfinite(sol)) {
    html += tile("Speed of light", fmt::format("{:.1f}%", sol), "of what the machine could do, median");
  }
  if (!history.memory_bytes.empty()) {
    int64_t total = 0;
    for (const auto& [category, bytes] : history.memory_bytes) total += bytes;
    html += tile("Memory", format_bytes(total), "sum of the categories' peaks");
  }
  return "<div class=\"tiles\">\n" + html + "</div>\n";
}

// What a reader should not have to find in the charts.
std::vector<std::string> findings(const RunHistory& history) {
  std::vector<std::string> found;
  if (history.skipped_steps > 0) {
    found.push_back(fmt::format("{} of {} steps were skipped because a number was not finite.", history.skipped_steps,
                                history.step.size()));
  }
  if (history.unigram_entropy && !history.val_loss.empty() && !(history.val_loss.back() < *history.unigram_entropy)) {
    found.push_back(
        fmt::format("The validation loss, {}, is not below the unigram entropy of the text, {:.3f}: so far the "
                    "model knows no more than how often each token occurs.",
                    fixed(history.val_loss.back(), 3), *history.unigram_entropy));
  }
  int64_t dead = 0;
  for (const LayerLoad& layer : history.last_load) dead += layer.dead_experts;
  if (dead > 0) {
    found.push_back(
        fmt::format("Experts without a token at step {}: {}. If it stays so, raise the balance bias rate or the "
                    "auxiliary loss.",
                    format_thousands(history.last_load_step), dead));
  }
  for (const auto& [role, health] : history.fp8) {
    if (health.non_finite > 0) {
      found.push_back(fmt::format("{} elements of role {} were not finite before quantising.",
                                  format_thousands(health.non_finite), role));
    }
  }
  for (const auto& [place, slow] : history.slow_ranks) {
    found.push_back(fmt::format(
        "Rank {} (host {}) was slower than the others, who waited for it in {:.0f} % of the time (records of steps "
        "that say so: {}).",
        place.first, place.second, slow.percent_sum / double(slow.intervals), slow.intervals));
  }
  if (history.lines_left_out > 0) {
    found.push_back(
        fmt::format("{} lines of metrics.jsonl could not be read and are left out here.", history.lines_left_out));
  }
  return found;
}

constexpr std::string_view kPageStyle = R"css(
:root{color-scheme:light dark;--paper:#fff;--page:#f5f6f8;--ink:#1f2933;--muted:#52606d;--line:#e4e7eb;
--blue:#1766c2;--orange:#c2500a;--teal:#0b7a6f;--violet:#7442c8;--grey:#697586}
@media (prefers-color-scheme:dark){:root{--paper:#14181f;--page:#0d1015;--ink:#e6eaf0;--muted:#a3adba;--line:#2a313c;
--blue:#6cb0ff;--orange:#ff9d54;--teal:#3fd0bd;--violet:#bd9dff;--grey:#94a0b0}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',sans-serif}
main{max-width:1040px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0 0 2px;overflow-wrap:anywhere} h2{font-size:18px;margin:0 0 12px} h3{font-size:14px;margin:0 0 2px}
.sub,.note{color:var(--muted);margin:0 0 18px} .note{font-size:13px;margin-bottom:8px}
section{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin:16px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(148px,1fr));gap:12px}
.tile{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.tile div,.tile span{color:var(--muted);font-size:13px;line-height:1.35} .tile strong{display:block;font-size:22px;line-height:1.35;font-weight:600;white-space:nowrap}
.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(360px,1fr));gap:18px 24px} figure{margin:0}
svg.plot{display:block;width:100%;height:auto} h3+.note+svg,figure svg{margin-top:4px} svg+h3{margin-top:22px}
.findings{border-left:4px solid var(--orange)} .findings ul{margin:0;padding-left:18px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px;margin-top:12px}
th,td{padding:5px 18px 5px 0;text-align:right;border-bottom:1px solid var(--line)} th{font-weight:500;color:var(--muted);vertical-align:bottom}
th:first-child,td:first-child{text-align:left} .sum td{border-bottom:0;font-weight:600} .scroll{overflow-x:auto}
td i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:8px} svg.spark{vertical-align:middle}
.bar{display:flex;height:22px;border-radius:6px;overflow:hidden;gap:2px} .bar span{display:block;min-width:1px}
.bg-blue{background:var(--blue)} .bg-orange{background:var(--orange)} .bg-teal{background:var(--teal)} .bg-violet{background:var(--violet)} .bg-grey{background:var(--grey)}
pre{margin:10px 0 0;padding:14px;background:var(--page);border-radius:8px;overflow-x:auto;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,'DejaVu Sans Mono',monospace}
pre.text{white-space:pre-wrap;overflow-wrap:anywhere} summary{cursor:pointer;font-size:18px;font-weight:600}
)css";

}  // namespace

RunHistory read_history(FileSystem& files, const std::string& metrics_path) {
  RunHistory history;
  MetricsReader reader(files, metrics_path);
  StepRecord record;
  while (reader.next(record)) {
    const double step = double(record.step);
    history.step.push_back(step);
    history.loss.push_back(record.loss);
    history.lr.push_back(record.lr);
    history.grad_norm.push_back(record.grad_norm);
    history.tokens_per_second.push_back(record.tokens_per_second);
    history.sol_percent.push_back(record.sol_percent);
    history.tokens = record.tokens;
    history.skipped_steps += record.skipped;
    if (std::isfinite(record.step_seconds)) history.seconds += record.step_seconds;
    if (record.val_loss) history.val_step.push_back(step), history.val_loss.push_back(*record.val_loss);
    if (record.bits_per_byte) history.bits_per_byte = record.bits_per_byte;
    if (record.unigram_entropy) history.unigram_entropy = record.unigram_entropy;
    bool has_shares = false;
    for (const LayerLoad& load : record.experts) {
      RunHistory::Layer& layer = history.layers[load.layer];
      layer.step.push_back(step);
      layer.max_violation.push_back(load.max_violation);
      has_shares |= !load.share.empty();
    }
    if (has_shares || (history.last_load.empty() && !record.experts.empty())) {
      history.last_load = record.experts;
      history.last_load_step = record.step;
    }
    if (record.swiglu_clamped_percent) {
      history.clamped_step.push_back(step), history.clamped_percent.push_back(*record.swiglu_clamped_percent);
    }
    for (const Fp8Health& health : record.fp8) {
      auto role = std::find_if(history.fp8.begin(), history.fp8.end(), [&](auto& r) { return r.first == health.role; });
      if (role == history.fp8.end()) role = history.fp8.insert(role, {health.role, {}});
      role->second.flushed_percent.push_back(health.flushed_percent);
      role->second.saturated_percent.push_back(health.saturated_percent);
      role->second.non_finite += health.non_finite;
    }
    if (record.slow_rank) {
      RunHistory::Slow& slow = history.slow_ranks[{record.slow_rank->rank, record.slow_rank->host}];
      ++slow.intervals, slow.percent_sum += record.slow_rank->percent;
    }
    for (const auto& [category, bytes] : record.memory_bytes) {
      auto peak = std::find_if(history.memory_bytes.begin(), history.memory_bytes.end(),
                               [&, name = category](auto& p) { return p.first == name; });
      if (peak == history.memory_bytes.end()) peak = history.memory_bytes.insert(peak, {category, 0});
      peak->second = std::max(peak->second, bytes);
    }
  }
  history.lines_left_out = reader.lines_left_out();
  return history;
}

std::vector<double> smooth(const std::vector<double>& values, int64_t radius) {
  require(radius >= 0, "smooth: radius is {}; wanted 0 or more", radius);
  const int64_t n = int64_t(values.size());
  std::vector<double> result(values.size());
  for (int64_t i = 0; i < n; ++i) {
    const int64_t left = std::min(radius, i);
    const int64_t right = std::min(std::min(radius, n - 1 - i), i);
    double sum = 0;
    int64_t count = 0;
    for (int64_t j = i - left; j <= i + right; ++j) {
      if (std::isfinite(values[size_t(j)])) sum += values[size_t(j)], ++count;
    }
    result[size_t(i)] = count > 0 ? sum / double(count) : std::numeric_limits<double>::quiet_NaN();
  }
  return result;
}

std::string render_loss_svg(const RunHistory& history, const std::string& title) {
  Chart chart = loss_chart(history, title);
  chart.show_title = true;
  chart.standalone = true;
  chart.width = 840, chart.height = 380;
  return render_chart(chart);
}

std::string render_report(const RunHistory& history, const ReportTexts& texts) {
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>{0} · Octet run</title>\n"
      "<style>{1}\n{2}</style>\n</head>\n<body>\n<main>\n<h1>{0}</h1>\n<p class=\"sub\">Octet training run. Rest the "
      "pointer on a chart for its values.</p>\n",
      escape_markup(texts.run_name), kPageStyle, plot_style());
  if (history.step.empty()) {
    html += "<section><h2>No step yet</h2><p class=\"note\">metrics.jsonl has no record.</p></section>\n";
  } else {
    html += tiles(history);
    const std::vector<std::string> found = findings(history);
    if (!found.empty()) {
      html += "<section class=\"findings\"><h2>Worth a look</h2><ul>\n";
      for (const std::string& line : found) html += "<li>" + escape_markup(line) + "</li>\n";
      html += "</ul></section>\n";
    }
    html += "<section><h2>Loss</h2>\n" + render_chart(loss_chart(history, "Loss")) + "</section>\n";
    html += "<section><h2>Optimisation and speed</h2>\n<div class=\"grid2\">\n";
    html += small_chart("Learning rate", "rate", "violet", history.step, history.lr, false, false);
    html += small_chart("Gradient norm", "before clipping", "orange", history.step, history.grad_norm,
                        spans_decades(history.grad_norm), true);
    html += small_chart("Speed", "tokens per second", "teal", history.step, history.tokens_per_second, false, true);
    if (std::isfinite(median(history.sol_percent))) {
      html += small_chart("Speed of light", "percent", "blue", history.step, history.sol_percent, false, true);
    }
    if (!history.clamped_percent.empty()) {
      html += small_chart("Clamped by model.swiglu_limit", "percent of gates and ups", "orange", history.clamped_step,
                          history.clamped_percent, false, false);
    }
    html += "</div></section>\n";
    if (!history.last_load.empty()) {
      html += "<section><h2>Experts</h2>\n" + load_map(history) + violation_map(history) + "<div class=\"scroll\">" +
              load_table(history) + "</div></section>\n";
    }
    if (!history.fp8.empty()) {
      html +=
          "<section><h2>FP8 health</h2>\n<p class=\"note\">What quantising to E4M3 did to the elements of each role: "
          "non-zero ones that became zero, and ones cut to 448.</p>\n<div class=\"scroll\">" +
          fp8_table(history) + "</div></section>\n";
    }
    if (!history.memory_bytes.empty()) {
      html += "<section><h2>Memory</h2>\n" + memory_section(history) + "</section>\n";
    }
  }
  if (!texts.samples.empty()) {
    html += "<section><h2>Samples</h2>\n<pre class=\"text\">" + escape_markup(texts.samples) + "</pre></section>\n";
  }
  if (!texts.config.empty()) {
    html += "<section><details><summary>Configuration</summary>\n<pre>" + escape_markup(texts.config) +
            "</pre></details></section>\n";
  }
  return html + "</main>\n</body>\n</html>\n";
}

void write_report(FileSystem& files, const std::string& run_dir) {
  const std::string metrics_path = join_path(run_dir, "metrics.jsonl");
  if (!files.exists(metrics_path)) {
    fail(ErrorKind::kArgument, {.what = fmt::format("{} has no metrics.jsonl; wanted the directory of a run", run_dir),
                                .where = run_dir,
                                .why = "a report is drawn from the record of the run's steps",
                                .fix = "give the directory that `octet train` wrote, its --out"});
  }
  const RunHistory history = read_history(files, metrics_path);
  ReportTexts texts{.run_name = file_name_of(run_dir), .samples = {}, .config = {}};
  // The newest samples: from the first line that begins within the last part of the file.
  if (const std::string path = join_path(run_dir, "samples.txt"); files.exists(path)) {
    const auto file = files.open(path);
    const uint64_t bytes = std::min(file->size(), kSamplesShownBytes);
    texts.samples.resize(bytes);
    file->read_at(file->size() - bytes, texts.samples.data(), bytes);
    if (bytes < file->size()) texts.samples.erase(0, texts.samples.find('\n') + 1);
  }
  if (const std::string path = join_path(run_dir, "config.yaml"); files.exists(path)) {
    texts.config = files.read_text(path);
  }
  files.write_atomically(join_path(run_dir, "report.html"), render_report(history, texts));
  files.write_atomically(join_path(run_dir, "loss.svg"), render_loss_svg(history, texts.run_name));
}

}  // namespace octet
