// Predictor: how likely the next batch wants an expert. Others rank the experts of a coming layer and say by how much
// each is ahead of the last one that would be chosen; how often such a margin, together with how often the expert was
// wanted lately, was right is learned online: p = 1 / (1 + exp(-(margin * a + frequency * b + c))), one (a, b, c) per
// distance in layers. Every forecast is later compared with what the router chose; the score is kept.
//
// Pure: numbers in, numbers out. Owner: the engine thread.
#pragma once

#include <array>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/base/ids.h"
#include "kernels/base/types.h"

namespace stoker {

enum class PredictorKind : u8 {
  none,
  previous,     // what the previous token used in the layer
  count,        // what was used most lately in the layer
  pair,         // what went together lately with the experts of the layer before
  gate,         // the coming layer's router, on what is known of its input
  gate_shared,  // the same with the shared expert's output added
};

inline constexpr std::array kPredictorKinds = {PredictorKind::none, PredictorKind::previous, PredictorKind::count,
                                               PredictorKind::pair, PredictorKind::gate, PredictorKind::gate_shared};
std::string_view name(PredictorKind kind);  // "gate+shared"
inline bool is_gate(PredictorKind kind) { return kind == PredictorKind::gate || kind == PredictorKind::gate_shared; }

// An expert in a ranking.
struct RankedExpert {
  ExpertId expert;
  f32 margin = 0;  // score, relative to the last that would be chosen; about -1 .. 1
};

struct LikelyExpert {
  ExpertId expert;
  f32 probability = 0;
};

// How good forecasts were, at one distance. Slots: choices that the router made for a row.
struct ForecastScore {
  i64 slots = 0;
  i64 found_narrow = 0;  // in the best top_k of the ranking
  i64 found_wide = 0;    // in all of it
  f64 weight = 0;        // of the chosen experts' gates
  f64 weight_found = 0;  // of those within the best top_k
  i64 judged = 0;        // probabilities
  f64 squared_error = 0;

  f64 recall_narrow() const { return slots > 0 ? static_cast<f64>(found_narrow) / static_cast<f64>(slots) : 0; }
  f64 recall_wide() const { return slots > 0 ? static_cast<f64>(found_wide) / static_cast<f64>(slots) : 0; }
  f64 gate_mass_recall() const { return weight > 0 ? weight_found / weight : 0; }
  f64 brier() const { return judged > 0 ? squared_error / static_cast<f64>(judged) : 0; }

  ForecastScore& operator+=(const ForecastScore& other);
};

// How many experts a ranking for this distance should have: twice, one and a half times, once top_k.
i64 ranking_width(i64 experts, i64 top_k, i64 distance);

class Predictor {
 public:
  static constexpr i64 kMaxDistance = 3;
  static constexpr i64 kMaxRows = 8;

  struct Shape {
    i64 moe_layers = 0, experts = 0, top_k = 0;
    bool pairs = false;  // by_pair() will be asked: 4 bytes per layer and pair of experts
  };
  explicit Predictor(const Shape& shape);

  i64 width(i64 distance) const { return ranking_width(shape_.experts, shape_.top_k, distance); }

  // Rankings without a gate, best first.
  std::span<const RankedExpert> by_count(i64 moe_layer);
  std::span<const RankedExpert> by_previous(i64 moe_layer);
  // By how often each expert was chosen lately when those were that the layer before has chosen, for the batch's last row;
  // by_count() for the first layer.
  std::span<const RankedExpert> by_pair(i64 moe_layer);

  // A forecast for the next batch at this layer, from a ranking per row; replaces one of the same distance.
  void begin(i64 moe_layer, i64 distance);
  void add_row(i64 moe_layer, i64 distance, std::span<const RankedExpert> ranking);
  // The forecast as a whole, likeliest first: that at least one row wants the expert.
  std::span<const LikelyExpert> likely(i64 moe_layer, i64 distance);

  // The forecast for one of its rows, likeliest first, at most `count`; empty when there is none. Valid until the next call.
  std::span<const LikelyExpert> likely_of_row(i64 moe_layer, i64 distance, i64 row, i64 count);

  // What the router chose: ids and weights are [rows, top_k]. Ends the layer's forecasts. Batches other than those that
  // were forecast (a prompt) only update the counts.
  void observe(i64 moe_layer, std::span<const i32> ids, std::span<const f32> weights, i64 rows);

  ForecastScore score(i64 distance) const;                                      // of all layers together
  std::span<const ForecastScore> layer_scores() const { return scores_; }  // [moe layers, kMaxDistance]

 private:
  struct Candidate {
    ExpertId expert;
    f32 margin = 0, frequency = 0, probability = 0;
  };
  struct Forecast {
    std::vector<Candidate> candidates;  // row by row
    std::array<i64, kMaxRows + 1> row_begin{};
    i64 rows = 0;
  };
  struct Fit {
    f32 margin = 3, frequency = 0.3f, constant = 0;
  };
  Forecast& forecast(i64 moe_layer, i64 distance);
  f32& count(i64 moe_layer, i64 expert) { return counts_[static_cast<size_t>(moe_layer * shape_.experts + expert)]; }
  f32 frequency(i64 moe_layer, ExpertId expert);
  struct Place {
    i64 moe_layer, distance;
  };
  void judge(const Forecast& forecast, Place place, std::span<const i32> ids, std::span<const f32> weights);
  void judge_row(std::span<const Candidate> row, Place place, std::span<const i32> ids, std::span<const f32> weights);
  void learn(Fit& fit, const Candidate& candidate, bool wanted);
  f32* together(i64 moe_layer, i64 before) {
    return pairs_.data() + (moe_layer * shape_.experts + before) * shape_.experts;
  }
  std::span<const i32> last_chosen(i64 moe_layer) const {
    return std::span(previous_).subspan(static_cast<size_t>(moe_layer * shape_.top_k), static_cast<size_t>(shape_.top_k));
  }
  void update_pairs(i64 moe_layer, std::span<const i32> ids);
  void update_counts(i64 moe_layer, std::span<const i32> ids, i64 rows);

  Shape shape_;
  std::vector<f32> counts_;             // [moe layers * experts], decayed per token
  std::vector<i32> previous_;           // [moe layers * top_k], -1: none yet
  std::vector<f32> pairs_;              // [moe layers, experts before, experts]: share of their tokens, decayed
  std::vector<f32> pair_scores_;        // [experts] scratch
  std::vector<Forecast> forecasts_;     // [moe layers * distances]
  std::array<Fit, kMaxDistance> fits_;
  std::vector<ForecastScore> scores_;   // [moe layers * distances]
  std::vector<RankedExpert> ranking_;   // scratch
  std::vector<LikelyExpert> likely_;
  std::vector<f32> unwanted_;           // [experts] scratch: that no row wants it
};

}  // namespace stoker
