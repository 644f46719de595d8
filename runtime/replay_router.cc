#include "runtime/replay_router.h"

#include "kernels/base/error.h"
#include "kernels/format/f16.h"

namespace stoker {

ReplayRouter::ReplayRouter(Router& gate, const Hparams& hparams, TraceSource& source, const std::string& what,
                           const std::optional<EmulatedLookahead::Options>& lookahead)
    : gate_(gate), dense_layers_(hparams.dense_layers), trace_layers_(source.header().layers), top_k_(hparams.top_k) {
  if (lookahead) lookahead_.emplace(source.header(), *lookahead);
  for (TraceRecord record; records_ < kMostRecords && source.next(record); records_++) {
    ids_.insert(ids_.end(), record.ids.begin(), record.ids.end());
    for (f32 weight : record.weights) weights_.push_back(f32_to_f16(weight));
    if (lookahead_) lookahead_->add(record);
  }
  if (records_ == 0) fail("--routing {}: the trace has no record", what);
}

std::span<const RankedExpert> ReplayRouter::ranking(LayerId layer, i64 distance, i64 row) {
  return lookahead_->ranking(record_of(row), trace_layer(layer), distance);
}

void ReplayRouter::begin_batch(std::span<const BatchRow> rows) {
  gate_.begin_batch(rows);
  first_of_batch_ = next_;
  next_ = (next_ + static_cast<i64>(rows.size())) % records_;
}

void ReplayRouter::route(const RoutedRows& rows, i32* ids, f32* gate_weights) {
  gate_.route(rows, ids, gate_weights);
  for (i64 t = 0; t < rows.tokens; t++) {
    size_t from = static_cast<size_t>((record_of(t) * trace_layers_ + trace_layer(rows.layer)) * top_k_);
    for (i64 k = 0; k < top_k_; k++) {
      ids[t * top_k_ + k] = ids_[from + static_cast<size_t>(k)];
      gate_weights[t * top_k_ + k] = f16_to_f32(weights_[from + static_cast<size_t>(k)]);
    }
  }
}

}  // namespace stoker
