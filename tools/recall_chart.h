// Recall per layer: how many of the chosen experts the predictor had foreseen, by layer and distance, as a chart.
#pragma once

#include <span>
#include <string>

#include "scheduler/policy/predictor.h"

namespace stoker {

struct LayerRecall {
  std::string model;      // its name
  std::string predictor;  // "gate+shared"
  i64 first_layer = 0;    // number of the first layer with experts
  i64 experts = 0, top_k = 0;
  std::span<const ForecastScore> scores;  // [moe layers, Predictor::kMaxDistance]
};

// Writes an SVG file. Throws Error when nothing was predicted, or the file cannot be written.
void write_recall_chart(const std::string& path, const LayerRecall& recall);

}  // namespace stoker
