// ReplayRouter: experts and gate weights from a trace or made up, whatever the rows are: a model of random weights then
// streams as the traced one did. The gate is still computed, for its time, and its choice dropped.
// Owner: the engine thread.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/router.h"
#include "scheduler/trace/emulated_lookahead.h"
#include "scheduler/trace/trace_format.h"

namespace stoker {

class ReplayRouter final : public Router {
 public:
  // Most records that are kept, the first ones; then they are repeated.
  static constexpr i64 kMostRecords = 8192;

  // `gate` must outlive this; `source`, of a model with as many experts as this one, is read here. `what` names it when it
  // has no record. The trace's layers go to the model's layers with experts in order, from the first again when the model
  // has more. With `lookahead` there are rankings of coming layers.
  ReplayRouter(Router& gate, const Hparams& hparams, TraceSource& source, const std::string& what,
               const std::optional<EmulatedLookahead::Options>& lookahead = {});

  i64 records() const { return records_; }

  // What a layer's gate would have ranked so many layers before, for a row of the batch (emulated_lookahead.h).
  std::span<const RankedExpert> ranking(LayerId layer, i64 distance, i64 row);

  // Every row takes the next record.
  void begin_batch(std::span<const BatchRow> rows) override;
  void route(const RoutedRows& rows, i32* ids, f32* gate_weights) override;

 private:
  i64 record_of(i64 row) const { return (first_of_batch_ + row) % records_; }
  i64 trace_layer(LayerId layer) const { return (layer.value - dense_layers_) % trace_layers_; }

  Router& gate_;
  i64 dense_layers_, trace_layers_, top_k_;
  i64 records_ = 0;
  i64 next_ = 0, first_of_batch_ = 0;
  std::optional<EmulatedLookahead> lookahead_;
  std::vector<u16> ids_, weights_;  // [records, trace layers, top_k]; weights are f16
};

}  // namespace stoker
