#include "runtime/lookahead.h"

#include <algorithm>

#include "runtime/replay_router.h"

namespace stoker {

namespace {

constexpr i64 kMoreGroups = 2;  // a group that just misses is often chosen in the end

}  // namespace

Lookahead::Lookahead(const Ops& ops, Stream& stream, const Hparams& hparams, const Weights& weights, Scheduler& scheduler,
                     const Forecaster::Options& options, ReplayRouter* replay)
    : ops_(ops),
      h_(hparams),
      weights_(weights),
      replay_(replay),
      wants_shared_(options.kind == PredictorKind::gate_shared),
      forecaster_(scheduler, options),
      inputs_(ops, Predictor::kMaxRows * hparams.hidden),
      input_(static_cast<size_t>(Predictor::kMaxRows * hparams.hidden)),
      normed_(static_cast<size_t>(Predictor::kMaxRows * hparams.hidden)),
      logits_(static_cast<size_t>(Predictor::kMaxRows * hparams.experts)),
      ids_(static_cast<size_t>(hparams.experts)),
      probabilities_(static_cast<size_t>(hparams.experts)) {
  if (forecaster_.uses_gates()) copies_.emplace(ops, stream, hparams, weights);
  ranking_.reserve(static_cast<size_t>(hparams.experts));
  scores_.reserve(static_cast<size_t>(hparams.experts));
}

void Lookahead::look(Stream& stream, LayerId layer, const f32* x, const f32* more, i64 rows) {
  if (!forecaster_.looks(rows)) return;
  take_input(stream, x, more, rows);
  forecaster_.look(layer, rows, *this);
}

void Lookahead::look_before_ffn(Stream& stream, LayerId layer, const f32* x, i64 rows) {
  if (!forecaster_.looks(rows)) return;
  take_input(stream, x, nullptr, rows);
  forecaster_.look_before_ffn(layer, rows, *this);
}

void Lookahead::take_input(Stream& stream, const f32* x, const f32* more, i64 rows) {
  stream_ = &stream;
  if (!forecaster_.uses_gates()) return;
  std::copy_n(x, rows * h_.hidden, input_.data());
  if (more != nullptr) ops_.add(stream, input_.data(), more, rows * h_.hidden);
}

void Lookahead::begin(LayerId target, i64 distance, i64 rows) {
  target_ = target;
  distance_ = distance;
  ops_.rms_norm(*stream_, {.x = input_.data(),
                           .weight = weights_of(target).ffn_norm,
                           .y = normed_.data(),
                           .rows = rows,
                           .cols = h_.hidden,
                           .x_stride = h_.hidden,
                           .y_stride = h_.hidden,
                           .epsilon = h_.rms_epsilon});
  score(*stream_, copies_->router(target), normed_.data(), rows);
}

std::span<const RankedExpert> Lookahead::rank(i64 row, i64 width) {
  std::span<const RankedExpert> ranking = rank(*stream_, weights_of(target_), row, width);
  return replay_ != nullptr ? replay_->ranking(target_, distance_, row) : ranking;
}

void Lookahead::score(Stream& stream, const Matrix& router, const f32* normed, i64 rows) {
  inputs_.set(normed, rows, h_.hidden);
  inputs_.multiply(stream, router, /*exact=*/false, logits_.data(), h_.experts);
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

}  // namespace stoker
