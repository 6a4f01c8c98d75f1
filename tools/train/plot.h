// Charts as SVG text: no scripts, no fonts and no pictures from elsewhere. Colours come from plot_style(), which has a
// light and a dark form (prefers-color-scheme), and differ in lightness as well as hue. What the pointer rests on says
// its values (SVG <title>). Text in the structs below is plain; it is escaped here.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace octet {

// For the text of HTML and XML and for their attributes: & < > " ' as entities; control characters and bytes that are
// not UTF-8, which XML forbids, as U+FFFD; line feeds and tabs stay.
std::string escape_markup(std::string_view text);

// Round positions from at or below `low` to at or above `high`, about `wanted` of them, 1, 2 or 5 times a power of ten
// apart. low < high, both finite.
std::vector<double> tick_positions(double low, double high, int wanted);
// "0.25", "12k", "3e-4": short labels.
std::string tick_label(double value);

enum class Mark { kLine, kFaintLine, kPoints, kDashedLine };
struct Series {
  std::string name;   // in the legend and in hover texts
  std::string color;  // "blue", "orange", "teal", "violet" or "grey"
  Mark mark = Mark::kLine;
  std::vector<double> x, y;  // x rises; a y that is not finite leaves a gap
};

struct Chart {
  std::string title;  // also what a screen reader says
  std::string x_label = {}, y_label = {};
  std::vector<Series> series = {};
  int width = 960, height = 360;  // in CSS pixels; the picture scales with its container
  bool log_y = false;             // values that are not positive leave a gap
  bool zero_y = false;            // the axis begins at 0
  bool show_title = false;        // draws the title above the chart
  bool standalone = false;        // a file of its own, with style and background
};
// Lines with more points than pixels are drawn as the least and the largest value of each pixel column.
std::string render_chart(const Chart& chart);

struct HeatCell {
  int64_t row, column;
  double strength;    // 0 to 1: how much of the colour is laid over the background
  bool low = false;   // blue where true, orange where not
  bool dead = false;  // crossed out
  std::string hover = {};
};
struct HeatMap {
  std::string title, x_label, y_label;
  std::vector<std::string> row_names, column_names;  // first row on top
  std::vector<HeatCell> cells;
  std::vector<std::pair<double, std::string>> key;  // strength (negative: low) and label, from left to right
  int width = 960;
};
std::string render_heat_map(const HeatMap& map);

// A line without axes, for a table cell.
std::string render_sparkline(const std::vector<double>& y, std::string_view hover);

// CSS for everything above.
std::string plot_style();

}  // namespace octet
