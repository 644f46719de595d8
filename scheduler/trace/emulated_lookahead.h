// EmulatedLookahead: what the gates of coming layers, applied to an earlier layer's hidden state, would have ranked at each
// token of a trace. A trace has no hidden states; but how well such scores z' agree with the later, true ones z has been
// measured on models of this kind, and stands for it:  z' = r z + sqrt(1 - r^2) noise,  r = 0.955, 0.91, 0.87 one, two and
// three layers ahead, less in the first layers, more in the last. A ranking further ahead is one from nearer with more noise.
//
// Synthetic routing tells its scores. Of a recorded trace only the choice is known: scores are then drawn around how often
// an expert was used lately and put into an order in which the choice is right, so that an expert that just was not chosen
// is, as in a model, one that is chosen often.
// The same records and seed give the same rankings. Owner: one thread.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "kernels/base/rng.h"
#include "scheduler/policy/predictor.h"
#include "scheduler/trace/group_choice.h"
#include "scheduler/trace/normal_table.h"
#include "scheduler/trace/trace_format.h"

namespace stoker {

// Correlation of scores, by distance in layers.
using LookaheadQuality = std::array<f64, Predictor::kMaxDistance>;
constexpr LookaheadQuality kGateQuality = {.955, .91, .87};
// With the shared expert's output added: in a model of this kind 3 points more of recall, which is .012 of correlation.
constexpr LookaheadQuality kGateSharedQuality = {.967, .922, .882};
constexpr LookaheadQuality kPerfectQuality = {1, 1, 1};
constexpr const LookaheadQuality& gate_quality(PredictorKind kind) {
  return kind == PredictorKind::gate ? kGateQuality : kGateSharedQuality;
}

class EmulatedLookahead {
 public:
  struct Options {
    LookaheadQuality quality = kGateQuality;
    i64 distances = 1;  // 1 .. Predictor::kMaxDistance
    u64 seed = 1;
  };
  EmulatedLookahead(const TraceHeader& shape, const Options& options);

  // Records in the trace's order.
  void add(const TraceRecord& record);
  i64 records() const { return records_; }

  // What would be expected of a layer (of the trace) so many layers before, best first, ranking_width() experts or as
  // many as there are. Valid until the next call.
  std::span<const RankedExpert> ranking(i64 record, i64 layer, i64 distance);

 private:
  struct Place {
    u16 expert, margin;  // margin in f16
  };
  void reconstruct(i64 layer, const u16* ids);
  void lower_other_groups(std::span<const u16> ids);
  void rank(i64 distance);
  f64 correlation(i64 layer, i64 distance) const;
  const f32* draw();
  void count(i64 layer, const u16* ids);

  TraceHeader shape_;
  Options options_;
  NormalTable normal_;
  Rng rng_;
  GroupChoice choice_;
  i64 records_ = 0;
  std::array<i64, Predictor::kMaxDistance> width_{}, first_{};  // of a layer's places
  i64 places_per_layer_ = 0;
  std::vector<Place> places_;         // [records, layers, distances, width]; 65535: none
  std::vector<f32> counts_;           // [layers, experts], decayed per record
  std::vector<f32> score_of_count_;   // see reconstruct()
  std::vector<f32> true_scores_, scores_, noise_;  // [experts]
  std::vector<u16> order_;                         // [experts] scratch
  std::vector<RankedExpert> ranking_;
};

}  // namespace stoker
