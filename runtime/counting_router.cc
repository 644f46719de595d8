#include "runtime/counting_router.h"

#include <utility>

namespace stoker {

CountingRouter::CountingRouter(Router& router, const Hparams& hparams, Popularity known)
    : router_(router), first_layer_(hparams.dense_layers), top_k_(hparams.top_k), popularity_(std::move(known)) {
  if (popularity_.moe_layers() == 0) popularity_ = Popularity(hparams.moe_layers(), hparams.experts);
}

void CountingRouter::begin_batch(std::span<const BatchRow> rows) { router_.begin_batch(rows); }

void CountingRouter::route(const RoutedRows& rows, i32* ids, f32* gate_weights) {
  router_.route(rows, ids, gate_weights);
  popularity_.add(rows.layer.value - first_layer_, rows.tokens, {ids, static_cast<size_t>(rows.tokens * top_k_)});
}

}  // namespace stoker
