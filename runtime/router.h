// Router: which experts see which token. GateRouter computes it from the model's gate, or takes what the layer's home device has
// computed; others (replay_router.h, recording_router.h) stand around it. Owner: the engine thread.
#pragma once

#include <span>
#include <vector>

#include "kernels/base/ids.h"
#include "kernels/ops.h"
#include "runtime/batch_row.h"
#include "runtime/hparams.h"
#include "runtime/weights.h"
#include "scheduler/scheduler_view.h"

namespace stoker {

// Which experts see a pass's rows in a layer.
struct ExpertChoice {
  std::vector<i32> ids;      // [rows, top_k], best first
  std::vector<f32> weights;  // [rows, top_k], final
  bool made = false;         // the layer's home has asked the gate
};

// A layer's rows that are to be routed.
struct RoutedRows {
  Stream& stream;
  LayerId layer;
  const LayerWeights& weights;
  const f32* x;  // [tokens, hidden], after the FFN norm
  i64 tokens;
  bool chosen = false;  // the gate has been asked, and its choice is where route() is to write it (ExpertChoice::made)
};

class Router {
 public:
  virtual ~Router() = default;

  // The rows that the following calls of route() are about, one call per layer with experts.
  virtual void begin_batch(std::span<const BatchRow>) {}

  // For each row writes the chosen experts, best first, and their final weights: ids and weights are [tokens, top_k].
  virtual void route(const RoutedRows& rows, i32* ids, f32* gate_weights) = 0;

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
  void route(const RoutedRows& rows, i32* ids, f32* gate_weights) override;

 private:
  const Ops& ops_;
  const Hparams& h_;
  std::vector<f32> logits_;  // [max_tokens, experts]
};

// The gate itself, there where the ops compute: on a device it has been posted when this returns.
struct GateArgs {
  Matrix router;
  const f32* bias;  // [experts] or nullptr
  const f32* x;     // [tokens, hidden], after the FFN norm
  i64 tokens;
  f32* logits;  // [tokens, experts] of scratch
  i32* ids;     // [tokens, top_k]
  f32* weights; // [tokens, top_k]
};
void choose_experts(const Ops& ops, Stream& stream, const Hparams& hparams, const GateArgs& args);

}  // namespace stoker
