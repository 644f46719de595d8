// Forecaster: what coming layers will want, told to the scheduler as hints. Rankings come from the coming layers' gates,
// which are somebody else's arithmetic, or from what earlier tokens used; the predictor makes probabilities of them.
// The runtime and the simulator go through it alike: after each layer's acquire(), observe() what was chosen, then look().
// Owner: the engine thread.
#pragma once

#include <span>
#include <vector>

#include "scheduler/policy/predictor.h"
#include "scheduler/scheduler.h"

namespace stoker {

// Rankings of coming layers by their gates.
class GateRankings {
 public:
  virtual ~GateRankings() = default;
  // The next calls of rank() are about this layer, seen from so many layers before.
  virtual void begin(LayerId target, i64 distance, i64 rows) = 0;
  // Best first; valid until the next call.
  virtual std::span<const RankedExpert> rank(i64 row, i64 width) = 0;
};

class Forecaster {
 public:
  struct Options {
    PredictorKind kind = PredictorKind::gate_shared;
    i64 distance = 0;  // layers ahead, 1 .. Predictor::kMaxDistance; 0: as many as the governor thinks are worth it
  };
  // `scheduler` must outlive it.
  Forecaster(Scheduler& scheduler, const Options& options);

  static bool handles(i64 rows) { return rows <= Predictor::kMaxRows; }
  bool uses_gates() const { return is_gate(options_.kind); }
  // Whether look() would do anything now. Not while the governor measures how fast tokens are without: what it costs to
  // look ahead belongs to the comparison.
  bool looks(i64 rows) const;

  // What the router chose at this layer: ids and weights are [rows, top_k].
  void observe(LayerId layer, std::span<const i32> ids, std::span<const f32> gate_weights, i64 rows);
  // Hints what the layers after this one will want.
  void look(LayerId layer, i64 rows, GateRankings& gates);
  // The same before the FFN of a layer without experts, in whose time nothing else can be read: what is known then is taken for
  // what the layer before knows, so the next layer is two ahead.
  void look_before_ffn(LayerId layer, i64 rows, GateRankings& gates);

  // The forecast from the layer before, for one of its rows.
  std::span<const LikelyExpert> guesses(i64 moe_layer, i64 row, i64 count) {
    return predictor_.likely_of_row(moe_layer, 1, row, count);
  }

  const Predictor& predictor() const { return predictor_; }

 private:
  void look(LayerId layer, i64 nearest, i64 farthest, i64 rows, GateRankings& gates);
  void forecast(LayerId target, i64 moe_layer, i64 distance, i64 rows, GateRankings& gates);

  Scheduler& scheduler_;
  Options options_;
  Predictor predictor_;
  std::vector<ExpertExpectation> hint_;
};

}  // namespace stoker
