#include "scheduler/forecaster.h"

#include "kernels/base/check.h"

namespace stoker {

Forecaster::Forecaster(Scheduler& scheduler, const Options& options)
    : scheduler_(scheduler),
      options_(options),
      predictor_({scheduler.table().moe_layers(), scheduler.table().experts_per_layer(), scheduler.table().top_k(),
                  options.kind == PredictorKind::pair}) {
  static_assert(Governor::kFarthest <= Predictor::kMaxDistance);
  CHECK(options.distance >= 0 && options.distance <= Predictor::kMaxDistance);
  hint_.reserve(static_cast<size_t>(scheduler.table().experts_per_layer()));
}

bool Forecaster::looks(i64 rows) const {
  return options_.kind != PredictorKind::none && handles(rows) && scheduler_.governor().wants_forecasts();
}

void Forecaster::observe(LayerId layer, std::span<const i32> ids, std::span<const f32> gate_weights, i64 rows) {
  predictor_.observe(scheduler_.table().moe_index(layer), ids, gate_weights, rows);
}

void Forecaster::look(LayerId layer, i64 rows, GateRankings& gates) {
  i64 gates_ahead = options_.distance > 0 ? options_.distance : scheduler_.governor().lookahead();
  look(layer, 1, uses_gates() ? gates_ahead : 1, rows, gates);
}

void Forecaster::look_before_ffn(LayerId layer, i64 rows, GateRankings& gates) {
  if (uses_gates()) look(LayerId(layer.value - 1), 2, Predictor::kMaxDistance, rows, gates);
}

void Forecaster::look(LayerId layer, i64 nearest, i64 farthest, i64 rows, GateRankings& gates) {
  if (!looks(rows)) return;
  // The nearest first: its reads are wanted sooner.
  for (i64 distance = nearest; distance <= farthest; distance++) {
    LayerId target(layer.value + distance);
    i64 moe_layer = scheduler_.table().moe_index(target);
    if (moe_layer < 0) continue;
    forecast(target, moe_layer, distance, rows, gates);
    hint_.clear();
    for (const LikelyExpert& e : predictor_.likely(moe_layer, distance)) hint_.push_back({e.expert, e.probability});
    scheduler_.hint(target, hint_);
  }
}

void Forecaster::forecast(LayerId target, i64 moe_layer, i64 distance, i64 rows, GateRankings& gates) {
  if (uses_gates()) gates.begin(target, distance, rows);
  predictor_.begin(moe_layer, distance);
  for (i64 row = 0; row < rows; row++) {
    if (uses_gates())
      predictor_.add_row(moe_layer, distance, gates.rank(row, predictor_.width(distance)));
    else if (options_.kind == PredictorKind::count)
      predictor_.add_row(moe_layer, distance, predictor_.by_count(moe_layer));
    else if (options_.kind == PredictorKind::pair)
      predictor_.add_row(moe_layer, distance, predictor_.by_pair(moe_layer));
    else
      predictor_.add_row(moe_layer, distance, predictor_.by_previous(moe_layer));
  }
}

}  // namespace stoker
