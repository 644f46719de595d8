// Charts: what is in the file, and where.
#include "tools/plot/svg_chart.h"

#include <doctest/doctest.h>

namespace stoker {

namespace {

LineChart small_chart() {
  return {.title = "a < b & c",
          .subtitle = "sub",
          .x_label = "RAM, GiB",
          .y_label = "tokens per second",
          .series = {{"bound", {{10, 8}, {20, 10}}, true}, {"auto", {{10, 0}, {15, 4}, {20, 10}}}}};
}

i64 count(const std::string& text, std::string_view part) {
  i64 found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) found++;
  return found;
}

}  // namespace

TEST_CASE("a line chart has a line and a key per series, and dots where something was measured") {
  std::string text = svg(small_chart());
  CHECK(text.find("<svg xmlns=") == 0);
  CHECK(count(text, "class=\"line s0\"") == 2);
  CHECK(count(text, "class=\"line bound\"") == 2);
  CHECK(count(text, "<circle") == 3);
  CHECK(count(text, "</svg>") == 1);
  for (const char* part : {"RAM, GiB", "tokens per second", ">auto<", ">bound<", "prefers-color-scheme:dark"})
    CHECK(text.find(part) != std::string::npos);
}

TEST_CASE("text of a chart is escaped") {
  std::string text = svg(small_chart());
  CHECK(text.find("a &lt; b &amp; c") != std::string::npos);
  CHECK(text.find("a < b") == std::string::npos);
}

TEST_CASE("points are where the axes say: the first at the left, the least at the bottom, the most at the top") {
  // The plot is 548 wide from x = 64 and 344 high from y = 62; the y axis ends at 10.
  CHECK(svg(small_chart()).find("M64.0 406.0L338.0 268.4L612.0 62.0") != std::string::npos);
}

TEST_CASE("a chart of one point, and one of zeros, can be drawn") {
  LineChart chart{.title = "", .subtitle = "", .x_label = "", .y_label = "", .series = {{"one", {{5, 0}}}}};
  std::string text = svg(chart);
  CHECK(text.find("nan") == std::string::npos);
  CHECK(text.find("inf") == std::string::npos);
  CHECK(count(text, "<circle") == 1);
}

TEST_CASE("a heat map has a cell per value, in the shade of its share") {
  HeatMap map{.title = "t", .subtitle = "", .x_label = "expert", .y_label = "layer", .value_label = "of the tokens",
              .first_row = 3, .columns = 4, .values = {0, .5, 1, 1, 0, 0, 0, 2}};
  std::string text = svg(map);
  CHECK(count(text, "h137.00v24.00h-137.00z") == 8);
  CHECK(text.find("<path class=\"h15\" d=\"M338.00 62.00") != std::string::npos);
  CHECK(text.find(">3<") != std::string::npos);  // the first row's number
}

}  // namespace stoker
