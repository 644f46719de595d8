#include "runtime/counting_router.h"

#include <utility>

namespace stoker {

CountingRouter::CountingRouter(Router& router, const Hparams& hparams, Popularity known)
    : router_(router), first_layer_(hparams.dense_layers), top_k_(hparams.top_k), popularity_(std::move(known)) {
  if (popularity_.moe_layers() == 0) popularity_ = Popularity(hparams.moe_layers(), hparams.experts);
}

void CountingRouter::begin_batch(std::span<const BatchRow> rows) { router_.begin_batch(rows); }

void CountingRouter::route(Stream& stream, LayerId layer, const LayerWeights& weights, const f32* x, i64 tokens, i32* ids,
                           f32* gate_weights) {
  router_.route(stream, layer, weights, x, tokens, ids, gate_weights);
  popularity_.add(layer.value - first_layer_, tokens, {ids, static_cast<size_t>(tokens * top_k_)});
}

}  // namespace stoker
