#include "tools/recall_chart.h"

#include <fmt/format.h>

#include "kernels/base/error.h"
#include "tools/plot/svg_chart.h"
#include "tools/text_file.h"

namespace stoker {

void write_recall_chart(const std::string& path, const LayerRecall& recall) {
  LineChart chart{.title = fmt::format("{}: experts foreseen", recall.model),
                  .subtitle = fmt::format("predictor {}; {} of {} experts per token", recall.predictor, recall.top_k,
                                          recall.experts),
                  .x_label = "layer",
                  .y_label = "recall, %",
                  .series = {},
                  .y_max = 100};
  i64 layers = static_cast<i64>(recall.scores.size()) / Predictor::kMaxDistance;
  auto curve = [&](i64 distance, i64 width, f64 (ForecastScore::*value)() const) {
    ChartSeries series{fmt::format("{} ahead, @{}", distance, width), {}, false};
    for (i64 l = 0; l < layers; l++) {
      const ForecastScore& score = recall.scores[static_cast<size_t>(l * Predictor::kMaxDistance + distance - 1)];
      if (score.slots > 0) series.points.emplace_back(static_cast<f64>(recall.first_layer + l), 100 * (score.*value)());
    }
    if (!series.points.empty()) chart.series.push_back(std::move(series));
  };
  for (i64 distance = 1; distance <= Predictor::kMaxDistance; distance++) {
    i64 width = ranking_width(recall.experts, recall.top_k, distance);
    curve(distance, recall.top_k, &ForecastScore::recall_narrow);
    if (width > recall.top_k) curve(distance, width, &ForecastScore::recall_wide);
  }
  if (chart.series.empty())
    fail("{}: there is no recall to draw, since nothing was predicted: all experts are in memory, or --predictor is none", path);
  write_text_file(path, svg(chart));
}

}  // namespace stoker
