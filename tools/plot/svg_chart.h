// Charts as SVG files, legible on a light and on a dark page. Plain data in, text out.
#pragma once

#include <string>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

struct ChartSeries {
  std::string name;
  std::vector<std::pair<f64, f64>> points;  // by ascending x
  bool is_bound = false;                    // dashed, in the colour of text: no measurement
};

struct LineChart {
  std::string title, subtitle;
  std::string x_label, y_label;  // with units
  std::vector<ChartSeries> series;
  f64 y_max = 0;  // 0: the data's. The axis begins at 0
};

// Values from 0 to 1, dark to bright.
struct HeatMap {
  std::string title, subtitle;
  std::string x_label, y_label, value_label;
  i64 first_row = 0;         // its number on the axis
  i64 columns = 0;
  std::vector<f64> values;  // [rows, columns]
};

std::string svg(const LineChart& chart);
std::string svg(const HeatMap& map);

}  // namespace stoker
