#include "tools/train/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/base/error.h"
#include "tools/data/utf8.h"
#include "tools/train/progress.h"

namespace octet {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr int kHoverColumns = 120;  // places along a chart that answer to the pointer

// From values to pixels along one axis.
struct Axis {
  double low, high;  // values
  double from, to;   // pixels
  bool log = false;
  double operator()(double value) const {
    const double a = log ? std::log10(low) : low, b = log ? std::log10(high) : high;
    const double v = log ? std::log10(value) : value;
    return from + (v - a) / (b - a) * (to - from);
  }
};

bool drawable(double y, bool log) { return std::isfinite(y) && (!log || y > 0); }

struct Range {
  double low = INFINITY, high = -INFINITY;
  void add(double value) { low = std::min(low, value), high = std::max(high, value); }
  bool empty() const { return low > high; }
};

std::vector<double> log_ticks(double low, double high) {
  std::vector<double> ticks;
  const int first = int(std::floor(std::log10(low))), last = int(std::ceil(std::log10(high)));
  const std::vector<int> factors = last - first <= 2 ? std::vector<int>{1, 2, 5} : std::vector<int>{1};
  const int stride = std::max(1, (last - first) / 6);
  for (int exponent = first; exponent <= last; exponent += stride) {
    for (const int factor : factors) {
      const double tick = factor * std::pow(10.0, exponent);
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push_back(tick);
    }
  }
  return ticks;
}

// An SVG path through the points; pixel columns with more than two points give their extremes.
std::string path_of(const Series& series, const Axis& x_axis, const Axis& y_axis) {
  std::string path;
  bool pen_down = false;
  const auto point = [&](double px, double py) {
    path += fmt::format("{}{:.1f} {:.1f}", pen_down ? "L" : "M", px, py);
    pen_down = true;
  };
  const size_t n = series.x.size();
  for (size_t i = 0; i < n;) {
    if (!drawable(series.y[i], y_axis.log)) {
      pen_down = false, ++i;
      continue;
    }
    const double px = x_axis(series.x[i]);
    size_t end = i + 1, least = i, most = i;
    while (end < n && drawable(series.y[end], y_axis.log) && x_axis(series.x[end]) < std::floor(px) + 1) {
      if (series.y[end] < series.y[least]) least = end;
      if (series.y[end] > series.y[most]) most = end;
      ++end;
    }
    if (end - i <= 2) {
      for (size_t j = i; j < end; ++j) point(x_axis(series.x[j]), y_axis(series.y[j]));
    } else {
      for (const size_t j : {std::min(least, most), std::max(least, most)}) {
        point(x_axis(series.x[j]), y_axis(series.y[j]));
      }
    }
    i = end;
  }
  return path;
}

// The y of the series at the x nearest to `x`; NaN where it has none.
double value_near(const Series& series, double x) {
  if (series.x.empty()) return kNaN;
  const auto above = std::lower_bound(series.x.begin(), series.x.end(), x);
  size_t at = size_t(above - series.x.begin());
  if (at == series.x.size() || (at > 0 && x - series.x[at - 1] < series.x[at] - x)) --at;
  return series.y[at];
}

std::string hover_value(double value) {
  if (!std::isfinite(value)) return "not finite";
  if (value != 0 && std::abs(value) < 0.01) return fmt::format("{:.3e}", value);
  return std::abs(value) >= 10000 ? format_thousands(std::llround(value)) : fmt::format("{:.4g}", value);
}

std::string open_svg(std::string_view title, double width, double height, bool standalone) {
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" viewBox=\"0 0 {:g} {:g}\"{} role=\"img\" "
      "aria-label=\"{}\">\n",
      width, height, standalone ? fmt::format(" width=\"{:g}\" height=\"{:g}\"", width, height) : "",
      escape_markup(title));
  if (standalone) {
    svg += "<style>\n" + plot_style() + "</style>\n";
    svg += fmt::format("<rect class=\"paper\" width=\"{:g}\" height=\"{:g}\" rx=\"8\"/>\n", width, height);
  }
  return svg;
}

std::string text_at(double x, double y, std::string_view anchor, std::string_view css, std::string_view text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y, anchor,
                     css.empty() ? "" : fmt::format(" class=\"{}\"", css), escape_markup(text));
}

// About how wide a text of the chart's 12 px face is.
double text_width(std::string_view text) { return 6.6 * double(display_columns(text)); }

}  // namespace

std::string escape_markup(std::string_view text) {
  std::string out;
  out.reserve(text.size() + text.size() / 8);
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text, i);
    const char c = text[i];
    if (length == 0 || c == '\x7f' || (uint8_t(c) < 0x20 && c != '\n' && c != '\t')) {
      out += "\uFFFD";
      ++i;
      continue;
    }
    // U+FFFE and U+FFFF are UTF-8 but no XML characters.
    if (length == 3 && text.substr(i, 2) == "\xef\xbf" && uint8_t(text[i + 2]) >= 0xbe) {
      out += "\uFFFD";
    } else if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else if (c == '\'') {
      out += "&#39;";
    } else {
      out += text.substr(i, length);
    }
    i += length;
  }
  return out;
}

std::vector<double> tick_positions(double low, double high, int wanted) {
  require(std::isfinite(low) && std::isfinite(high) && low < high && wanted >= 2,
          "tick_positions: {} to {} in {}; wanted a finite range and 2 ticks or more", low, high, wanted);
  const double raw = (high - low) / (wanted - 1);
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw * 0.999) {
      step = factor * power;
      break;
    }
  }
  std::vector<double> ticks;
  const double first = std::floor(low / step + 1e-9), last = std::ceil(high / step - 1e-9);
  // A range as narrow as the spacing of its numbers (1e17 to 1e17 + 16) has no round ones between its ends.
  if (first + 1 == first || last + 1 == last) return {low, high};
  for (double i = first; i <= last; ++i) ticks.push_back(i * step);
  return ticks;
}

std::string tick_label(double value) {
  const double size = std::abs(value);
  if (size != 0 && size < 1e-3) {
    std::string text = fmt::format("{:.3g}", value);  // 0.0003, 3e-05
    if (text.find('e') == std::string::npos) {
      const int exponent = int(std::floor(std::log10(size) + 1e-9));
      return fmt::format("{:.3g}e{}", value / std::pow(10.0, exponent), exponent);
    }
    const size_t zero = text.find("e-0");
    if (zero != std::string::npos) text.erase(zero + 2, 1);
    return text;
  }
  if (size >= 1e9) return fmt::format("{:.4g}G", value / 1e9);
  if (size >= 1e6) return fmt::format("{:.4g}M", value / 1e6);
  if (size >= 1e4) return fmt::format("{:.4g}k", value / 1e3);
  return fmt::format("{:.4g}", value);
}

std::string render_chart(const Chart& chart) {
  const double width = chart.width, height = chart.height;
  const double top = chart.show_title ? 62 : 34, bottom = height - 42, right = width - 18;
  Range x_range, y_range;
  for (const Series& series : chart.series) {
    require(series.x.size() == series.y.size(), "render_chart: series {} has {} x and {} y; wanted as many",
            series.name, series.x.size(), series.y.size());
    for (size_t i = 0; i < series.x.size(); ++i) {
      x_range.add(series.x[i]);
      if (drawable(series.y[i], chart.log_y)) y_range.add(series.y[i]);
    }
  }
  std::string svg = open_svg(chart.title, width, height, chart.standalone);
  if (chart.show_title) svg += text_at(16, 26, "start", "title", chart.title);
  if (x_range.empty() || y_range.empty()) {
    svg += text_at(width / 2, height / 2, "middle", "muted", "no values yet");
    return svg + "</svg>\n";
  }
  if (chart.zero_y && !chart.log_y) y_range.add(0);
  if (x_range.low == x_range.high) x_range.low -= 0.5, x_range.high += 0.5;

  std::vector<double> y_ticks;
  Axis y_axis{.low = y_range.low, .high = y_range.high, .from = bottom, .to = top, .log = chart.log_y};
  if (chart.log_y) {
    if (y_axis.high < y_axis.low * 1.001) y_axis.low /= 2, y_axis.high *= 2;
    y_ticks = log_ticks(y_axis.low, y_axis.high);
    if (y_ticks.size() < 2) y_ticks = {y_axis.low, y_axis.high};
  } else {
    if (y_axis.low == y_axis.high) {
      const double margin = std::max(std::abs(y_axis.low) * 0.1, 1e-12);
      y_axis.high += margin;
      if (!chart.zero_y) y_axis.low -= margin;
    }
    y_ticks = tick_positions(y_axis.low, y_axis.high, std::max(3, chart.height / 45));
    const double margin = (y_axis.high - y_axis.low) * 0.04;
    if (!chart.zero_y || y_axis.low < 0) y_axis.low -= margin;
    y_axis.high += margin;
    std::erase_if(y_ticks, [&](double tick) { return tick < y_axis.low || tick > y_axis.high; });
  }
  double label_width = 0;
  for (const double tick : y_ticks) label_width = std::max(label_width, text_width(tick_label(tick)));
  const double left = 18 + label_width + 8;
  const Axis x_axis{.low = x_range.low, .high = x_range.high, .from = left, .to = right};

  for (const double tick : y_ticks) {
    const double y = y_axis(tick);
    svg += fmt::format("<line class=\"grid\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>\n", left, right,
                       y, y);
    svg += text_at(left - 8, y + 4, "end", "", tick_label(tick));
  }
  for (const double tick : tick_positions(x_range.low, x_range.high, std::max(3, chart.width / 110))) {
    if (tick < x_range.low || tick > x_range.high) continue;
    const double x = x_axis(tick);
    svg += fmt::format("<line class=\"axis\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>\n", x, x, bottom,
                       bottom + 5);
    svg += text_at(x, bottom + 18, "middle", "", tick_label(tick));
  }
  svg += fmt::format("<line class=\"axis\" x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>\n", left, right,
                     bottom, bottom);
  svg += text_at(right, height - 6, "end", "muted", chart.x_label);
  svg += text_at(16, top - 14, "start", "muted", chart.y_label);

  // The legend stands at the right of the line above the chart, the first series leftmost.
  double legend_x = right;
  for (auto series = chart.series.rbegin(); chart.series.size() > 1 && series != chart.series.rend(); ++series) {
    legend_x -= text_width(series->name);
    svg += text_at(legend_x, top - 14, "start", "", series->name);
    const double swatch = legend_x - 26, y = top - 18;
    if (series->mark == Mark::kPoints) {
      svg += fmt::format("<circle class=\"points {}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\"/>\n", series->color,
                         swatch + 10, y);
    } else {
      const char* mark = series->mark == Mark::kFaintLine    ? "faint"
                         : series->mark == Mark::kDashedLine ? "dashed"
                                                             : "line";
      svg += fmt::format("<path class=\"{} {}\" d=\"M{:.1f} {:.1f}L{:.1f} {:.1f}\"/>\n", mark, series->color, swatch, y,
                         swatch + 20, y);
    }
    legend_x = swatch - 16;
  }

  for (const Series& series : chart.series) {
    if (series.mark == Mark::kPoints) continue;
    const char* mark = series.mark == Mark::kFaintLine ? "faint" : series.mark == Mark::kDashedLine ? "dashed" : "line";
    svg += fmt::format("<path class=\"{} {}\" d=\"{}\"/>\n", mark, series.color, path_of(series, x_axis, y_axis));
  }

  // Places that answer to the pointer, one for each of at most kHoverColumns steps of the first series.
  const Series* anchor = nullptr;
  for (const Series& series : chart.series) {
    if (series.mark != Mark::kPoints && (anchor == nullptr || series.x.size() > anchor->x.size())) anchor = &series;
  }
  if (anchor != nullptr) {
    const size_t n = anchor->x.size(), columns = std::min<size_t>(n, kHoverColumns);
    double begin = left;
    for (size_t c = 0; c < columns; ++c) {
      const size_t at = columns == 1 ? 0 : c * (n - 1) / (columns - 1);
      const size_t after = c + 1 < columns ? (c + 1) * (n - 1) / (columns - 1) : at;
      const double x = x_axis(anchor->x[at]);
      const double end = c + 1 < columns ? (x + x_axis(anchor->x[after])) / 2 : right;
      std::string hover = fmt::format("{} {}", chart.x_label, hover_value(anchor->x[at]));
      std::string dots;
      for (const Series& series : chart.series) {
        if (series.mark == Mark::kPoints) continue;
        const double y = value_near(series, anchor->x[at]);
        hover += fmt::format("\n{}: {}", series.name, hover_value(y));
        if (series.mark == Mark::kLine && drawable(y, chart.log_y)) {
          dots += fmt::format("<circle class=\"points {}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\"/>", series.color, x,
                              y_axis(y));
        }
      }
      svg += fmt::format(
          "<g class=\"spot\"><title>{}</title><rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\"/>"
          "<line x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>{}</g>\n",
          escape_markup(hover), begin, top, std::max(end - begin, 0.1), bottom - top, x, x, top, bottom, dots);
      begin = end;
    }
  }

  for (const Series& series : chart.series) {
    if (series.mark != Mark::kPoints) continue;
    for (size_t i = 0; i < series.x.size(); ++i) {
      if (!drawable(series.y[i], chart.log_y)) continue;
      svg += fmt::format("<circle class=\"points {}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\"><title>{}</title></circle>\n",
                         series.color, x_axis(series.x[i]), y_axis(series.y[i]),
                         escape_markup(fmt::format("{} {}\n{}: {}", chart.x_label, hover_value(series.x[i]),
                                                   series.name, hover_value(series.y[i]))));
    }
  }
  return svg + "</svg>\n";
}

std::string render_heat_map(const HeatMap& map) {
  require(!map.row_names.empty() && !map.column_names.empty(), "render_heat_map: {} rows, {} columns; wanted 1 or more",
          map.row_names.size(), map.column_names.size());
  double label_width = 0;
  for (const std::string& name : map.row_names) label_width = std::max(label_width, text_width(name));
  const double left = 18 + label_width + 8, right = map.width - 18.0, top = 34;
  const double rows = double(map.row_names.size()), columns = double(map.column_names.size());
  const double cell_width = std::min((right - left) / columns, 56.0);
  const double cell_height = std::clamp(320.0 / rows, 9.0, 30.0);
  const double bottom = top + rows * cell_height, height = bottom + 42;
  const double gap = cell_width >= 6 ? 1.5 : cell_width >= 3 ? 0.5 : 0.0;
  std::string svg = open_svg(map.title, map.width, height, false);

  const auto fill = [](double strength, bool low) {
    return fmt::format("class=\"{}\" fill-opacity=\"{:.3f}\"", low ? "low" : "high", std::clamp(strength, 0.0, 1.0));
  };
  const auto stride = [](double wanted_px, double px) {
    return std::max<size_t>(1, size_t(std::ceil(wanted_px / px)));
  };
  for (size_t r = 0; r < map.row_names.size(); r += stride(14, cell_height)) {
    svg += text_at(left - 8, top + (double(r) + 0.5) * cell_height + 4, "end", "", map.row_names[r]);
  }
  double widest = 0;
  for (const std::string& name : map.column_names) widest = std::max(widest, text_width(name));
  for (size_t c = 0; c < map.column_names.size(); c += stride(widest + 12, cell_width)) {
    svg += text_at(left + (double(c) + 0.5) * cell_width, bottom + 16, "middle", "", map.column_names[c]);
  }
  svg += text_at(left + columns * cell_width, bottom + 34, "end", "muted", map.x_label);
  svg += text_at(16, top - 14, "start", "muted", map.y_label);

  double key_x = right;
  for (auto entry = map.key.rbegin(); entry != map.key.rend(); ++entry) {
    key_x -= text_width(entry->second);
    svg += text_at(key_x, top - 14, "start", "", entry->second);
    key_x -= 20;
    svg += fmt::format(
        "<rect class=\"cell\" x=\"{0:.1f}\" y=\"{1:.1f}\" width=\"14\" height=\"14\"/><rect {2} x=\"{0:.1f}\" "
        "y=\"{1:.1f}\" "
        "width=\"14\" height=\"14\"/>\n",
        key_x, top - 25, fill(std::abs(entry->first), entry->first < 0));
    key_x -= 14;
  }

  svg += fmt::format("<rect class=\"cell\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\"/>\n", left, top,
                     columns * cell_width, rows * cell_height);
  for (const HeatCell& cell : map.cells) {
    const double x = left + double(cell.column) * cell_width, y = top + double(cell.row) * cell_height;
    const double w = cell_width - gap, h = cell_height - gap;
    svg += fmt::format("<g><title>{}</title><rect {} x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\"/>",
                       escape_markup(cell.hover), fill(cell.strength, cell.low), x, y, w, h);
    if (cell.dead) {
      svg += fmt::format("<path class=\"cross\" d=\"M{:.2f} {:.2f}l{:.2f} {:.2f}m0 {:.2f}l{:.2f} {:.2f}\"/>", x + 2,
                         y + 2, w - 4, h - 4, 4 - h, 4 - w, h - 4);
    }
    svg += "</g>\n";
  }
  return svg + "</svg>\n";
}

std::string render_sparkline(const std::vector<double>& y, std::string_view hover) {
  constexpr double kWidth = 120, kHeight = 24;
  Series series{.name = "", .color = "blue", .mark = Mark::kLine, .x = std::vector<double>(y.size()), .y = y};
  std::iota(series.x.begin(), series.x.end(), 0.0);
  Range range;
  range.add(0);
  for (const double value : y) {
    if (std::isfinite(value)) range.add(value);
  }
  if (range.high <= range.low) range.high = range.low + 1;
  const Axis x_axis{.low = 0, .high = std::max(1.0, double(y.size()) - 1), .from = 2, .to = kWidth - 2};
  const Axis y_axis{.low = range.low, .high = range.high, .from = kHeight - 3, .to = 3};
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"spark\" width=\"{0:g}\" height=\"{1:g}\" viewBox=\"0 0 {0:g} "
      "{1:g}\" role=\"img\" aria-label=\"{2}\"><title>{2}</title><path class=\"line blue\" d=\"{3}\"/></svg>",
      kWidth, kHeight, escape_markup(hover), path_of(series, x_axis, y_axis));
}

std::string plot_style() {
  // Each colour keeps 3:1 contrast or more against its background, and text 7:1.
  struct Scheme {
    const char *paper, *ink, *muted, *grid, *axis, *blue, *orange, *teal, *violet, *grey, *cell;
  };
  constexpr Scheme kLight = {"#ffffff", "#1f2933", "#52606d", "#e4e7eb", "#9aa5b1", "#1766c2",
                             "#c2500a", "#0b7a6f", "#7442c8", "#697586", "#f0f2f5"};
  constexpr Scheme kDark = {"#14181f", "#e6eaf0", "#a3adba", "#2a313c", "#5b6675", "#6cb0ff",
                            "#ff9d54", "#3fd0bd", "#bd9dff", "#94a0b0", "#1e242d"};
  const auto colors = [](const Scheme& scheme) {
    std::string css;
    css += fmt::format(
        ".paper{{fill:{}}} .plot text{{fill:{}}} .plot .muted{{fill:{}}} .grid{{stroke:{}}} "
        ".axis{{stroke:{}}} .cell{{fill:{}}}\n",
        scheme.paper, scheme.ink, scheme.muted, scheme.grid, scheme.axis, scheme.cell);
    for (const auto& [name, value] :
         {std::pair{"blue", scheme.blue}, std::pair{"orange", scheme.orange}, std::pair{"teal", scheme.teal},
          std::pair{"violet", scheme.violet}, std::pair{"grey", scheme.grey}}) {
      css += fmt::format(".{0}{{stroke:{1}}} .points.{0}{{fill:{1};stroke:{2}}}\n", name, value, scheme.paper);
    }
    css += fmt::format(".low{{fill:{}}} .high{{fill:{}}} .cross{{stroke:{}}} .spot line{{stroke:{}}}\n", scheme.blue,
                       scheme.orange, scheme.ink, scheme.muted);
    return css;
  };
  return ".plot text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',sans-serif}\n"
         ".plot .title{font-size:16px;font-weight:600}\n"
         ".line,.faint,.dashed{fill:none;stroke-linejoin:round;stroke-linecap:round}\n"
         ".line{stroke-width:2} .faint{stroke-width:1;opacity:.35} .dashed{stroke-width:1.5;stroke-dasharray:6 5}\n"
         ".points{stroke-width:1.5} .cross{fill:none;stroke-width:1.5}\n"
         ".spot rect{fill:transparent} .spot line,.spot circle{visibility:hidden} "
         ".spot:hover line,.spot:hover circle{visibility:visible}\n" +
         colors(kLight) + "@media (prefers-color-scheme:dark){\n" + colors(kDark) + "}\n";
}

}  // namespace octet
