#include "runtime/lookahead.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace stoker {

namespace {

constexpr i64 kMoreGroups = 2;  // a group that just misses is often chosen in the end

}  // namespace

Lookahead::Lookahead(const Ops& ops, const Hparams& hparams, const Weights& weights, Scheduler& scheduler,
                     const Options& options)
    : ops_(ops),
      h_(hparams),
      weights_(weights),
      scheduler_(scheduler),
      options_(options),
      predictor_({hparams.moe_layers(), hparams.experts, hparams.top_k}),
      input_(static_cast<size_t>(Predictor::kMaxRows * hparams.hidden)),
      normed_(static_cast<size_t>(Predictor::kMaxRows * hparams.hidden)),
      logits_(static_cast<size_t>(Predictor::kMaxRows * hparams.experts)),
      ids_(static_cast<size_t>(hparams.experts)),
      probabilities_(static_cast<size_t>(hparams.experts)) {
  CHECK(options.distance >= 1 && options.distance <= Predictor::kMaxDistance);
  ranking_.reserve(static_cast<size_t>(hparams.experts));
  scores_.reserve(static_cast<size_t>(hparams.experts));
  hint_.reserve(static_cast<size_t>(hparams.experts));
}

void Lookahead::observe(LayerId layer, std::span<const i32> ids, std::span<const f32> gate_weights, i64 rows) {
  predictor_.observe(scheduler_.table().moe_index(layer), ids, gate_weights, rows);
}

void Lookahead::look(Stream& stream, LayerId layer, const f32* x, const f32* more, i64 rows) {
  if (options_.kind == PredictorKind::none || !handles(rows)) return;
  if (uses_gate()) {
    std::copy_n(x, rows * h_.hidden, input_.data());
    if (more != nullptr) ops_.add(stream, input_.data(), more, rows * h_.hidden);
  }
  i64 farthest = uses_gate() ? options_.distance : 1;
  // The nearest first: its reads are wanted sooner.
  for (i64 distance = 1; distance <= farthest; distance++) {
    LayerId target(layer.value + distance);
    if (target.value >= h_.layers || !weights_.layers()[static_cast<size_t>(target.value)].is_moe()) continue;
    if (uses_gate())
      forecast_by_gate(stream, target, distance, input_.data(), rows);
    else
      forecast_by_history(target, rows);
    hint(target, distance);
  }
}

void Lookahead::forecast_by_gate(Stream& stream, LayerId target, i64 distance, const f32* x, i64 rows) {
  const LayerWeights& w = weights_.layers()[static_cast<size_t>(target.value)];
  i64 moe_layer = scheduler_.table().moe_index(target);
  ops_.rms_norm(stream, {.x = x,
                         .weight = w.ffn_norm,
                         .y = normed_.data(),
                         .rows = rows,
                         .cols = h_.hidden,
                         .x_stride = h_.hidden,
                         .y_stride = h_.hidden,
                         .epsilon = h_.rms_epsilon});
  score(stream, w, normed_.data(), rows);
  predictor_.begin(moe_layer, distance);
  for (i64 row = 0; row < rows; row++)
    predictor_.add_row(moe_layer, distance, rank(stream, w, row, predictor_.width(distance)));
}

void Lookahead::forecast_by_history(LayerId target, i64 rows) {
  i64 moe_layer = scheduler_.table().moe_index(target);
  predictor_.begin(moe_layer, 1);
  for (i64 row = 0; row < rows; row++)
    predictor_.add_row(moe_layer, 1, options_.kind == PredictorKind::count ? predictor_.by_count(moe_layer)
                                                                          : predictor_.by_previous(moe_layer));
}

void Lookahead::score(Stream& stream, const LayerWeights& w, const f32* normed, i64 rows) {
  ops_.matmul(stream, {.weights = w.router,
                       .x = {normed, ActivationForm::F32, h_.hidden * i64{sizeof(f32)}},
                       .tokens = rows,
                       .y = logits_.data(),
                       .y_stride = h_.experts});
}

std::span<const RankedExpert> Lookahead::rank(Stream& stream, const LayerWeights& w, i64 row, i64 width) {
  ranking_.clear();
  scores_.clear();
  auto append = [&](i64 count) {
    for (i64 i = 0; i < count && static_cast<i64>(ranking_.size()) < width; i++) {
      ExpertId expert(ids_[static_cast<size_t>(i)]);
      auto same = [&](const RankedExpert& r) { return r.expert == expert; };
      if (std::any_of(ranking_.begin(), ranking_.end(), same)) continue;
      ranking_.push_back({expert, 0});
      scores_.push_back(probabilities_[static_cast<size_t>(i)] + (w.router_bias ? w.router_bias[expert.value] : 0.0f));
    }
  };
  append(select(stream, w, row, h_.top_k, h_.groups_used));
  f32 last_chosen = scores_.back();
  if (width > h_.top_k) append(select(stream, w, row, width, h_.groups_used + kMoreGroups));
  auto [least, most] = std::minmax_element(scores_.begin(), scores_.end());
  f32 spread = *most > *least ? *most - *least : 1.0f;
  for (size_t i = 0; i < ranking_.size(); i++) ranking_[i].margin = (scores_[i] - last_chosen) / spread;
  return ranking_;
}

// Writes the best `count` experts of a row of logits_ to ids_, with their probabilities before any scaling; returns how many
// there are in so many groups.
i64 Lookahead::select(Stream& stream, const LayerWeights& w, i64 row, i64 count, i64 groups_used) {
  i64 groups = std::max<i64>(h_.groups, 1);
  groups_used = std::min(groups_used, groups);
  count = std::min(count, h_.experts / groups * groups_used);
  ops_.route(stream, {.logits = logits_.data() + row * h_.experts,
                      .tokens = 1,
                      .experts = h_.experts,
                      .top_k = count,
                      .bias = w.router_bias,
                      .sigmoid = h_.expert_sigmoid,
                      .normalise = false,
                      .scale = 1,
                      .groups = groups,
                      .groups_used = groups_used,
                      .group_score_is_max = h_.group_score_is_max,
                      .ids = ids_.data(),
                      .weights = probabilities_.data()});
  return count;
}

void Lookahead::hint(LayerId target, i64 distance) {
  hint_.clear();
  for (const LikelyExpert& e : predictor_.likely(scheduler_.table().moe_index(target), distance))
    hint_.push_back({e.expert, e.probability});
  scheduler_.hint(target, hint_);
}

}  // namespace stoker
