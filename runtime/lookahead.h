// Lookahead: 8-bit copies of the gates of coming layers, applied to what is known of their input while the current layer's experts are read:
// the residual stream, which a layer changes little. The forecaster makes hints of it. Nothing of this shows in the
// logits: buffers are its own.
// Owner: the engine thread.
#pragma once

#include <optional>
#include <vector>

#include "runtime/activation_rows.h"
#include "runtime/gate_copies.h"
#include "runtime/hparams.h"
#include "runtime/weights.h"
#include "scheduler/forecaster.h"

namespace stoker {

class ReplayRouter;

class Lookahead final : private GateRankings {
 public:
  // All must outlive it. With a replayed routing the gates are computed for their time, and the rankings are the replay's.
  // `stream` is used to copy the gates.
  Lookahead(const Ops& ops, Stream& stream, const Hparams& hparams, const Weights& weights, Scheduler& scheduler,
            const Forecaster::Options& options, ReplayRouter* replay = nullptr);

  i64 bytes() const { return copies_ ? copies_->bytes() : 0; }  // of the copies

  bool wants_shared() const { return wants_shared_; }

  // What the router chose at this layer: ids and weights are [rows, top_k].
  void observe(LayerId layer, std::span<const i32> ids, std::span<const f32> gate_weights, i64 rows) {
    forecaster_.observe(layer, ids, gate_weights, rows);
  }
  // Hints what the next layers will want. x [rows, hidden] is the residual stream; `more` is added to it, or null.
  void look(Stream& stream, LayerId layer, const f32* x, const f32* more, i64 rows);
  // The same before the FFN of a layer without experts.
  void look_before_ffn(Stream& stream, LayerId layer, const f32* x, i64 rows);

  // Applies a layer's router [experts, hidden] to normed [rows, hidden].
  void score(Stream& stream, const Matrix& router, const f32* normed, i64 rows);
  // The experts that a scored row puts first, best first: those that routing as it is would choose, then the next best
  // with two more groups. Valid until the next call.
  std::span<const RankedExpert> rank(Stream& stream, const LayerWeights& w, i64 row, i64 width);

  // What is expected of one of the rows at a layer (index among those with experts), from the layer before; see Predictor.
  std::span<const LikelyExpert> guesses(i64 moe_layer, i64 row, i64 count) {
    return forecaster_.guesses(moe_layer, row, count);
  }

  const Predictor& predictor() const { return forecaster_.predictor(); }

 private:
  void take_input(Stream& stream, const f32* x, const f32* more, i64 rows);
  void begin(LayerId target, i64 distance, i64 rows) override;
  std::span<const RankedExpert> rank(i64 row, i64 width) override;
  const LayerWeights& weights_of(LayerId layer) const { return weights_.layers()[static_cast<size_t>(layer.value)]; }
  i64 select(Stream& stream, const LayerWeights& w, i64 row, i64 count, i64 groups_used);

  const Ops& ops_;
  const Hparams& h_;
  const Weights& weights_;
  ReplayRouter* replay_;  // or none
  bool wants_shared_;
  Forecaster forecaster_;
  std::optional<GateCopies> copies_;  // none when gates are not asked
  ActivationRows inputs_;             // of the product under way
  Stream* stream_ = nullptr;  // of the call of look() that is under way
  LayerId target_;            // what its rankings are about, and from how far
  i64 distance_ = 0;
  std::vector<f32> input_, normed_;  // [rows, hidden]
  std::vector<f32> logits_;          // [rows, experts]
  std::vector<i32> ids_;             // [experts]
  std::vector<f32> probabilities_;   // [experts]
  std::vector<RankedExpert> ranking_;
  std::vector<f32> scores_;          // of the ranking
};

}  // namespace stoker
