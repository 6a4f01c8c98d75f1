#include "tools/train/plot.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/base/error.h"
#include "tests/report/well_formed.h"

namespace octet::test {
namespace {

Chart chart_of(std::vector<double> y) {
  std::vector<double> x(y.size());
  std::iota(x.begin(), x.end(), 1.0);
  return {.title = "Loss", .x_label = "step", .y_label = "nats", .series = {{"train", "blue", Mark::kLine, x, y}}};
}

// The d attribute of the first path of this class.
std::string path_drawn(const std::string& svg, const std::string& css) {
  const size_t begin = svg.find("d=\"", svg.find("class=\"" + css + "\" d=")) + 3;
  return svg.substr(begin, svg.find('"', begin) - begin);
}

size_t points_drawn(const std::string& svg, const std::string& css) {
  const std::string path = path_drawn(svg, css);
  return size_t(std::count_if(path.begin(), path.end(), [](char c) { return c == 'M' || c == 'L'; }));
}

}  // namespace

TEST_CASE("text cannot become markup", "[plot]") {
  CHECK(escape_markup("<script>alert('&\"')</script>") == "&lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt;");
  CHECK(escape_markup("a\tb\nc") == "a\tb\nc");
  CHECK(escape_markup(std::string("\0\r\x1b\x7f", 4)) == "\uFFFD\uFFFD\uFFFD\uFFFD");
  CHECK(escape_markup("gr\u00fc\u00df \U0001F642") == "gr\u00fc\u00df \U0001F642");
  CHECK(escape_markup("\xff\xc3(\xed\xa0\x80") == "\uFFFD\uFFFD(\uFFFD\uFFFD\uFFFD");
  CHECK(escape_markup("\xef\xbf\xbf") == "\uFFFD");  // U+FFFF is no XML character
}

TEST_CASE("ticks are round, cover the range and are about as many as wanted", "[plot]") {
  CHECK(tick_positions(0, 10, 6) == std::vector<double>{0, 2, 4, 6, 8, 10});
  for (const auto& [low, high] :
       {std::pair{0.0, 1e-9}, std::pair{-3.7, 12.1}, std::pair{1e6, 1.7e6}, std::pair{0.1, 0.3}}) {
    const std::vector<double> ticks = tick_positions(low, high, 5);
    CAPTURE(low, high);
    CHECK(ticks.front() <= low + 1e-12 * std::abs(low));
    CHECK(ticks.back() >= high - 1e-12 * std::abs(high));
    CHECK(ticks.size() >= 3);
    CHECK(ticks.size() <= 12);
  }
  CHECK(tick_positions(1e17, std::nextafter(1e17, 1e18), 5).size() >= 2);
  CHECK_THROWS_AS(tick_positions(1, 1, 5), Error);
}

TEST_CASE("tick labels are short and do not depend on the locale", "[plot]") {
  CHECK(tick_label(0) == "0");
  CHECK(tick_label(0.25) == "0.25");
  CHECK(tick_label(3e-4) == "3e-4");
  CHECK(tick_label(2.5e-5) == "2.5e-5");
  CHECK(tick_label(1e-10) == "1e-10");
  CHECK(tick_label(2000) == "2000");
  CHECK(tick_label(12500) == "12.5k");
  CHECK(tick_label(-3e6) == "-3M");
}

TEST_CASE("charts are well-formed whatever the values", "[plot]") {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = INFINITY;
  const std::vector<std::vector<double>> cases = {{},
                                                  {1},
                                                  {nan},
                                                  {1, 1, 1},
                                                  {0, 0},
                                                  {nan, 2, nan, 3},
                                                  {inf, 1, -inf, 2},
                                                  {-5, 5},
                                                  {1e-300, 1e300},
                                                  {0, 1e-320},
                                                  {1e17, 1e17 + 16}};
  for (const bool log_y : {false, true}) {
    for (const bool standalone : {false, true}) {
      for (const std::vector<double>& y : cases) {
        Chart chart = chart_of(y);
        chart.title = "a < b & \"c\"";
        chart.log_y = log_y, chart.zero_y = !log_y, chart.standalone = chart.show_title = standalone;
        const std::string svg = render_chart(chart);
        CAPTURE(svg);
        CHECK(markup_fault(svg) == "");
        CHECK(svg.find("nan") == std::string::npos);
        CHECK(svg.find("inf") == std::string::npos);
      }
    }
  }
}

TEST_CASE("a chart says what its axes and lines are", "[plot]") {
  Chart chart = chart_of({3, 2, 1});
  chart.series.push_back({"validation", "orange", Mark::kPoints, {2, 3}, {2.5, 1.5}});
  const std::string svg = render_chart(chart);
  for (const char* text : {">step<", ">nats<", ">train<", ">validation<", "step 2\ntrain: 2", "validation: 1.5"}) {
    CAPTURE(text);
    CHECK(svg.find(text) != std::string::npos);
  }
}

TEST_CASE("a long series keeps its spikes and not its size", "[plot]") {
  std::vector<double> y(200000, 1.0);
  y[123457] = 10.0;
  y[50000] = std::numeric_limits<double>::quiet_NaN();
  const std::string svg = render_chart(chart_of(y));
  CHECK(points_drawn(svg, "line blue") < 2500);
  CHECK(points_drawn(svg, "line blue") > 900);
  CHECK(svg.size() < 200000);
  // Values 1 to 10 and a margin of 4% fill the 284 px from 34 down, so 10 lies at 34 + 284 * 0.36 / 9.72.
  CHECK(path_drawn(svg, "line blue").find(" 44.5L") != std::string::npos);
}

TEST_CASE("a heat map has a title for each cell and crosses out the dead", "[plot]") {
  HeatMap map{.title = "Load",
              .x_label = "expert",
              .y_label = "layer",
              .row_names = {"1", "2"},
              .column_names = {"0", "1", "2"},
              .cells = {{0, 0, 0.5, false, false, "first"}, {1, 2, 1.0, true, true, "last <dead>"}},
              .key = {{-1, "less"}, {1, "more"}}};
  const std::string svg = render_heat_map(map);
  CHECK(markup_fault(svg) == "");
  CHECK(svg.find("<title>first</title>") != std::string::npos);
  CHECK(svg.find("last &lt;dead&gt;") != std::string::npos);
  CHECK(svg.find("class=\"cross\"") != std::string::npos);
  map.row_names.assign(61, "x"), map.column_names.assign(256, "y");
  CHECK(markup_fault(render_heat_map(map)) == "");
}

TEST_CASE("sparklines take anything", "[plot]") {
  for (const std::vector<double>& y : {std::vector<double>{}, {0.0}, {1.0, NAN, 3.0}}) {
    CHECK(markup_fault(render_sparkline(y, "a & b")) == "");
  }
}

}  // namespace octet::test
