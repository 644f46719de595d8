// Lookahead: what coming layers will want, guessed while the current layer's experts are read, and passed to the
// scheduler as hints. The best guess applies the coming layer's own norm and router to what is known of its input:
// the residual stream, which a layer changes little. Nothing of this shows in the logits: buffers are its own.
// Owner: the engine thread.
#pragma once

#include <vector>

#include "runtime/hparams.h"
#include "runtime/weights.h"
#include "scheduler/policy/predictor.h"
#include "scheduler/scheduler.h"

namespace stoker {

class Lookahead {
 public:
  struct Options {
    PredictorKind kind = PredictorKind::gate_shared;
    i64 distance = 1;  // layers ahead, 1 .. Predictor::kMaxDistance
  };
  // All must outlive it.
  Lookahead(const Ops& ops, const Hparams& hparams, const Weights& weights, Scheduler& scheduler,
            const Options& options);

  static bool handles(i64 rows) { return rows <= Predictor::kMaxRows; }
  bool wants_shared() const { return options_.kind == PredictorKind::gate_shared; }

  // What the router chose at this layer: ids and weights are [rows, top_k].
  void observe(LayerId layer, std::span<const i32> ids, std::span<const f32> gate_weights, i64 rows);
  // Hints what the next layers will want. x [rows, hidden] is the residual stream; `more` is added to it, or null.
  void look(Stream& stream, LayerId layer, const f32* x, const f32* more, i64 rows);

  // Applies a layer's router to normed [rows, hidden].
  void score(Stream& stream, const LayerWeights& w, const f32* normed, i64 rows);
  // The experts that a scored row puts first, best first: those that routing as it is would choose, then the next best
  // with two more groups. Valid until the next call.
  std::span<const RankedExpert> rank(Stream& stream, const LayerWeights& w, i64 row, i64 width);

  const Predictor& predictor() const { return predictor_; }

 private:
  bool uses_gate() const { return options_.kind == PredictorKind::gate || wants_shared(); }
  void forecast_by_gate(Stream& stream, LayerId target, i64 distance, const f32* x, i64 rows);
  void forecast_by_history(LayerId target, i64 rows);
  i64 select(Stream& stream, const LayerWeights& w, i64 row, i64 count, i64 groups_used);
  void hint(LayerId target, i64 distance);

  const Ops& ops_;
  const Hparams& h_;
  const Weights& weights_;
  Scheduler& scheduler_;
  Options options_;
  Predictor predictor_;
  std::vector<f32> input_, normed_;  // [rows, hidden]
  std::vector<f32> logits_;          // [rows, experts]
  std::vector<i32> ids_;             // [experts]
  std::vector<f32> probabilities_;   // [experts]
  std::vector<RankedExpert> ranking_;
  std::vector<f32> scores_;          // of the ranking
  std::vector<ExpertExpectation> hint_;
};

}  // namespace stoker
