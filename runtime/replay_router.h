// ReplayRouter: experts and gate weights from a trace or made up, whatever the rows are: a model of random weights then
// streams as the traced one did. The gate is still computed, for its time, and its choice dropped.
// Owner: the engine thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/router.h"
#include "scheduler/trace/trace_format.h"

namespace stoker {

// "synthetic:PROFILE" (scheduler/trace/synthetic_routing.h) or a trace's file. Throws Error.
std::unique_ptr<TraceSource> open_routing(const std::string& what, const Hparams& hparams);

class ReplayRouter final : public Router {
 public:
  // Most records that are kept, the first ones; then they are repeated.
  static constexpr i64 kMostRecords = 8192;

  // `gate` must outlive this; `source` is read here. `what` names it in errors: no record, or other numbers of experts
  // than the model's. The trace's layers go to the model's layers with experts in order, from the first again when the
  // model has more.
  ReplayRouter(Router& gate, const Hparams& hparams, TraceSource& source, const std::string& what);

  i64 records() const { return records_; }

  // Every row takes the next record.
  void begin_batch(std::span<const BatchRow> rows) override;
  void route(Stream& stream, LayerId layer, const LayerWeights& weights, const f32* x, i64 tokens, i32* ids,
             f32* gate_weights) override;

 private:
  Router& gate_;
  i64 dense_layers_, trace_layers_, top_k_;
  i64 records_ = 0;
  i64 next_ = 0, first_of_batch_ = 0;
  std::vector<u16> ids_, weights_;  // [records, trace layers, top_k]; weights are f16
};

}  // namespace stoker
