// Router: which experts see which token. `gate` computes it from the model's gate; others (replay_router.h,
// recording_router.h) stand around it. Owner: the engine thread.
#pragma once

#include <span>

#include "kernels/base/ids.h"
#include "kernels/ops.h"
#include "runtime/batch_row.h"
#include "runtime/hparams.h"
#include "runtime/weights.h"
#include "scheduler/scheduler_view.h"

namespace stoker {

class Router {
 public:
  virtual ~Router() = default;

  // The rows that the following calls of route() are about, one call per layer with experts.
  virtual void begin_batch(std::span<const BatchRow>) {}

  // For each of `tokens` rows of x [tokens, hidden] (after the FFN norm) writes the chosen experts, best first, and
  // their final weights: ids and weights are [tokens, top_k].
  virtual void route(Stream& stream, LayerId layer, const LayerWeights& weights, const f32* x, i64 tokens, i32* ids,
                     f32* gate_weights) = 0;

  // Whether served() is of interest.
  virtual bool wants_served() const { return false; }
  // After the layer's experts have been computed: where each of the chosen was when it was asked for, [tokens, top_k], and how
  // long there was nothing to compute for want of one.
  virtual void served(LayerId, std::span<const ExpertTier>, i64 /*stall_ns*/) {}
};

// The model's own gate.
class GateRouter final : public Router {
 public:
  GateRouter(const Ops& ops, const Hparams& hparams, i64 max_tokens);
  void route(Stream& stream, LayerId layer, const LayerWeights& weights, const f32* x, i64 tokens, i32* ids,
             f32* gate_weights) override;

 private:
  const Ops& ops_;
  const Hparams& h_;
  std::vector<f32> logits_;  // [max_tokens, experts]
};

}  // namespace stoker
