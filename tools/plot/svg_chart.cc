// Colours are classes that a media query replaces on dark pages: style sheets in a file work wherever browsers show it,
// also as an image in a page.
#include "tools/plot/svg_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/base/check.h"

namespace stoker {

namespace {

constexpr f64 kWidth = 780, kHeight = 460;
constexpr f64 kLeft = 64, kRight = 168, kTop = 62, kBottom = 54;
constexpr f64 kPlotWidth = kWidth - kLeft - kRight, kPlotHeight = kHeight - kTop - kBottom;

constexpr std::array<std::string_view, 8> kLight = {"#0068b0", "#c24a00", "#00805e", "#8a4fbf",
                                                    "#a07800", "#7a4b2a", "#c0307a", "#6b6b6b"};
constexpr std::array<std::string_view, 8> kDark = {"#56b4ff", "#ff8a4c", "#3ccf9e", "#c29bff",
                                                   "#e6c34d", "#cf9f78", "#ff7fb8", "#b5b5b5"};
constexpr int kShades = 16;  // of a heat map

std::string escaped(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else
      out += c;
  }
  return out;
}

struct Rgb {
  f64 r, g, b;
};

std::string shade(int i, Rgb from, Rgb to) {
  f64 t = static_cast<f64>(i) / (kShades - 1);
  auto mix = [&](f64 a, f64 b) { return static_cast<int>(std::lround(a + t * (b - a))); };
  return fmt::format("#{:02x}{:02x}{:02x}", mix(from.r, to.r), mix(from.g, to.g), mix(from.b, to.b));
}

std::string colours(const std::array<std::string_view, 8>& lines, std::string_view page, std::string_view ink,
                    std::string_view dim, std::string_view grid, Rgb none, Rgb all) {
  std::string css = fmt::format(".page{{fill:{}}}.ink{{fill:{}}}.dim{{fill:{}}}.grid{{stroke:{}}}.axis{{stroke:{}}}.bound{{stroke:{}}}",
                                page, ink, dim, grid, dim, ink);
  for (size_t i = 0; i < lines.size(); i++) css += fmt::format(".s{}{{stroke:{}}}.d{}{{fill:{}}}", i, lines[i], i, lines[i]);
  for (int i = 0; i < kShades; i++) css += fmt::format(".h{}{{fill:{}}}", i, shade(i, none, all));
  return css;
}

std::string begin(std::string_view title, std::string_view subtitle, f64 width, f64 height) {
  std::string text = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" role=\"img\">\n<title>{2}"
      "</title>\n<style>text{{font:12px system-ui,sans-serif}}.title{{font-size:16px;font-weight:600}}"
      ".line{{fill:none;stroke-width:2;stroke-linejoin:round}}.bound{{stroke-dasharray:6 4}}{3}\n@media "
      "(prefers-color-scheme:dark){{{4}}}</style>\n",
      width, height, escaped(title),
      colours(kLight, "#ffffff", "#1b1b1b", "#5f5f5f", "#e3e3e3", {238, 241, 245}, {8, 64, 129}),
      colours(kDark, "#15171b", "#ececec", "#a2a2a2", "#33373d", {36, 40, 47}, {150, 210, 255}));
  text += fmt::format("<rect class=\"page\" width=\"{}\" height=\"{}\"/>\n", width, height);
  text += fmt::format("<text class=\"title ink\" x=\"{}\" y=\"26\">{}</text>\n", kLeft, escaped(title));
  return text + fmt::format("<text class=\"dim\" x=\"{}\" y=\"45\">{}</text>\n", kLeft, escaped(subtitle));
}

std::string label(f64 x, f64 y, std::string_view anchor, std::string_view text, std::string_view css = "dim") {
  return fmt::format("<text class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", css, x, y, anchor,
                     escaped(text));
}

std::string y_title(f64 y, std::string_view text) {
  return fmt::format("<text class=\"ink\" transform=\"translate(18 {:.1f}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n", y,
                     escaped(text));
}

// 1, 2 or 5 times a power of ten: about `count` of them make up `range`.
f64 tick_step(f64 range, int count) {
  f64 rough = range / count, power = std::pow(10, std::floor(std::log10(rough)));
  for (f64 step : {1., 2., 5.})
    if (step * power >= rough) return step * power;
  return 10 * power;
}

struct Axis {
  f64 low = 0, high = 1, step = 1;

  std::string number(f64 value) const { return fmt::format("{:.{}f}", value, step >= 1 ? 0 : step >= .1 ? 1 : 2); }
  f64 share(f64 value) const { return (value - low) / (high - low); }
};

class LineDrawing {
 public:
  explicit LineDrawing(const LineChart& chart) : chart_(chart) {
    f64 low = INFINITY, high = -INFINITY, top = chart.y_max;
    for (const ChartSeries& s : chart.series)
      for (auto [x, y] : s.points) {
        low = std::min(low, x);
        high = std::max(high, x);
        if (chart.y_max == 0) top = std::max(top, y);
      }
    CHECK(low <= high);
    if (low == high) high = low + 1;
    x_ = {low, high, tick_step(high - low, 8)};
    y_.step = tick_step(top > 0 ? top : 1, 6);
    y_.high = std::ceil((top > 0 ? top : 1) / y_.step - 1e-9) * y_.step;
  }

  std::string text() {
    std::string text = begin(chart_.title, chart_.subtitle, kWidth, kHeight) + axes();
    size_t colour = 0;
    f64 row = kTop + 8;
    for (const ChartSeries& s : chart_.series) {
      size_t c = s.is_bound ? 0 : colour++ % kLight.size();
      text += line(s, c) + key(s, c, row);
      row += 20;
    }
    return text + "</svg>\n";
  }

 private:
  f64 at_x(f64 x) const { return kLeft + kPlotWidth * x_.share(x); }
  f64 at_y(f64 y) const { return kTop + kPlotHeight * (1 - y_.share(std::min(y, y_.high))); }

  std::string axes() const {
    std::string text;
    for (f64 y = 0; y <= y_.high * (1 + 1e-9); y += y_.step) {
      text += fmt::format("<path class=\"grid\" d=\"M{} {:.1f}h{}\"/>\n", kLeft, at_y(y), kPlotWidth);
      text += label(kLeft - 8, at_y(y) + 4, "end", y_.number(y));
    }
    f64 bottom = kTop + kPlotHeight;
    for (f64 x = std::ceil(x_.low / x_.step - 1e-9) * x_.step; x <= x_.high * (1 + 1e-9); x += x_.step) {
      text += fmt::format("<path class=\"axis\" d=\"M{:.1f} {}v5\"/>\n", at_x(x), bottom);
      text += label(at_x(x), bottom + 19, "middle", x_.number(x));
    }
    text += fmt::format("<path class=\"axis\" d=\"M{} {}h{}\"/>\n", kLeft, bottom, kPlotWidth);
    text += label(kLeft + kPlotWidth / 2, kHeight - 12, "middle", chart_.x_label, "ink");
    return text + y_title(kTop + kPlotHeight / 2, chart_.y_label);
  }

  static std::string stroke(const ChartSeries& s, size_t colour) {
    return s.is_bound ? std::string("bound") : fmt::format("s{}", colour);
  }

  std::string line(const ChartSeries& s, size_t colour) const {
    std::string path, dots;
    for (auto [x, y] : s.points) {
      path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", at_x(x), at_y(y));
      if (!s.is_bound) dots += fmt::format("<circle class=\"d{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.8\"/>", colour, at_x(x), at_y(y));
    }
    return fmt::format("<path class=\"line {}\" d=\"{}\"/>{}\n", stroke(s, colour), path, dots);
  }

  std::string key(const ChartSeries& s, size_t colour, f64 row) const {
    f64 x = kLeft + kPlotWidth + 14;
    return fmt::format("<path class=\"line {}\" d=\"M{} {}h20\"/>\n", stroke(s, colour), x, row) +
           label(x + 26, row + 4, "start", s.name, "ink");
  }

  const LineChart& chart_;
  Axis x_, y_;
};

// Cells of a shade are one path: a model of ten thousand experts stays a small file.
std::string cells(const HeatMap& map, f64 cell_width, f64 cell_height) {
  std::array<std::string, kShades> paths;
  for (size_t i = 0; i < map.values.size(); i++) {
    i64 row = static_cast<i64>(i) / map.columns, column = static_cast<i64>(i) % map.columns;
    auto shade = static_cast<size_t>(std::lround(std::clamp(map.values[i], 0., 1.) * (kShades - 1)));
    paths[shade] += fmt::format("M{:.2f} {:.2f}h{:.2f}v{:.2f}h-{:.2f}z", kLeft + static_cast<f64>(column) * cell_width,
                                kTop + static_cast<f64>(row) * cell_height, cell_width, cell_height, cell_width);
  }
  std::string text;
  for (size_t i = 0; i < paths.size(); i++)
    if (!paths[i].empty()) text += fmt::format("<path class=\"h{}\" d=\"{}\"/>\n", i, paths[i]);
  return text;
}

}  // namespace

std::string svg(const LineChart& chart) { return LineDrawing(chart).text(); }

std::string svg(const HeatMap& map) {
  CHECK(map.columns > 0 && !map.values.empty());
  i64 rows = static_cast<i64>(map.values.size()) / map.columns;
  f64 cell_width = kPlotWidth / static_cast<f64>(map.columns);
  f64 cell_height = std::clamp(kPlotHeight / static_cast<f64>(rows), 6., 24.);
  f64 plot_height = cell_height * static_cast<f64>(rows), bottom = kTop + plot_height;
  std::string text = begin(map.title, map.subtitle, kWidth, bottom + kBottom) + cells(map, cell_width, cell_height);
  f64 step = std::max(1., tick_step(static_cast<f64>(rows), 8));
  for (f64 row = 0; row < static_cast<f64>(rows); row += step)
    text += label(kLeft - 8, kTop + (row + .5) * cell_height + 4, "end", fmt::format("{}", map.first_row + static_cast<i64>(row)));
  step = std::max(1., tick_step(static_cast<f64>(map.columns), 8));
  for (f64 column = 0; column < static_cast<f64>(map.columns); column += step)
    text += label(kLeft + (column + .5) * cell_width, bottom + 17, "middle", fmt::format("{:.0f}", column));
  text += label(kLeft + kPlotWidth / 2, bottom + 40, "middle", map.x_label, "ink");
  text += y_title(kTop + plot_height / 2, map.y_label);
  f64 x = kLeft + kPlotWidth + 18, key = std::min(plot_height, 160.) / kShades;
  for (int i = 0; i < kShades; i++)
    text += fmt::format("<rect class=\"h{}\" x=\"{}\" y=\"{:.1f}\" width=\"14\" height=\"{:.1f}\"/>\n", kShades - 1 - i, x,
                        kTop + i * key, key);
  text += label(x + 20, kTop + 10, "start", "100 %") + label(x + 20, kTop + kShades * key, "start", "0 %");
  return text + label(x, kTop + kShades * key + 20, "start", map.value_label, "ink") + "</svg>\n";
}

}  // namespace stoker
