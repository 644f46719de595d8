#include "scheduler/policy/predictor.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"

namespace stoker {

namespace {

constexpr f32 kDecay = 0.9786f;        // of a count per token: half in 32
constexpr f32 kLearningRate = 0.05f;   // slow enough for a token's noise, fast enough for a hundred tokens
constexpr f32 kPairStep = 0.03f;       // what a token counts for in a pair's share
constexpr f32 kCountShare = 0.5f;      // of the layer's own counts beside one pair's share
constexpr f32 kLeastCount = 0.05f;     // an expert that was not seen lately

f32 logistic(f32 x) { return 1.0f / (1.0f + std::exp(-x)); }

}  // namespace

std::string_view name(PredictorKind kind) {
  constexpr std::array<std::string_view, 6> names = {"none", "previous", "count", "pair", "gate", "gate+shared"};
  return names[static_cast<size_t>(kind)];
}

ForecastScore& ForecastScore::operator+=(const ForecastScore& other) {
  slots += other.slots;
  found_narrow += other.found_narrow;
  found_wide += other.found_wide;
  weight += other.weight;
  weight_found += other.weight_found;
  judged += other.judged;
  squared_error += other.squared_error;
  return *this;
}

i64 ranking_width(i64 experts, i64 top_k, i64 distance) {
  return std::min(experts, std::max(top_k, top_k * (5 - distance) / 2));
}

Predictor::Predictor(const Shape& shape)
    : shape_(shape),
      counts_(static_cast<size_t>(shape.moe_layers * shape.experts)),
      previous_(static_cast<size_t>(shape.moe_layers * shape.top_k), -1),
      pairs_(shape.pairs ? static_cast<size_t>(shape.moe_layers * shape.experts * shape.experts) : 0),
      pair_scores_(static_cast<size_t>(shape.experts)),
      forecasts_(static_cast<size_t>(shape.moe_layers * kMaxDistance)),
      scores_(forecasts_.size()),
      unwanted_(static_cast<size_t>(shape.experts)) {
  CHECK(shape.top_k > 0 && shape.top_k <= shape.experts);
  for (Forecast& f : forecasts_) f.candidates.reserve(static_cast<size_t>(kMaxRows * width(1)));
  ranking_.reserve(static_cast<size_t>(shape.experts));
  likely_.reserve(static_cast<size_t>(shape.experts));
}

ForecastScore Predictor::score(i64 distance) const {
  ForecastScore sum;
  for (i64 l = 0; l < shape_.moe_layers; l++) sum += scores_[static_cast<size_t>(l * kMaxDistance + distance - 1)];
  return sum;
}

Predictor::Forecast& Predictor::forecast(i64 moe_layer, i64 distance) {
  DCHECK(distance >= 1 && distance <= kMaxDistance);
  return forecasts_[static_cast<size_t>(moe_layer * kMaxDistance + distance - 1)];
}

// Log of how often the expert was wanted lately, relative to the average expert.
f32 Predictor::frequency(i64 moe_layer, ExpertId expert) {
  f32 average = static_cast<f32>(shape_.top_k) / static_cast<f32>(shape_.experts) / (1 - kDecay);
  return std::log(count(moe_layer, expert.value) / average + kLeastCount);
}

std::span<const RankedExpert> Predictor::by_count(i64 moe_layer) {
  ranking_.clear();
  for (i64 e = 0; e < shape_.experts; e++) ranking_.push_back({ExpertId(e), 0});
  auto more = [&](const RankedExpert& a, const RankedExpert& b) {
    f32 x = count(moe_layer, a.expert.value), y = count(moe_layer, b.expert.value);
    return x != y ? x > y : a.expert < b.expert;
  };
  auto end = ranking_.begin() + static_cast<std::ptrdiff_t>(width(1));
  std::partial_sort(ranking_.begin(), end, ranking_.end(), more);
  ranking_.erase(end, ranking_.end());
  return ranking_;
}

std::span<const RankedExpert> Predictor::by_previous(i64 moe_layer) {
  ranking_.clear();
  for (i64 k = 0; k < shape_.top_k; k++) {
    i32 expert = previous_[static_cast<size_t>(moe_layer * shape_.top_k + k)];
    if (expert >= 0) ranking_.push_back({ExpertId(expert), 0});
  }
  return ranking_;
}

std::span<const RankedExpert> Predictor::by_pair(i64 moe_layer) {
  if (moe_layer == 0 || last_chosen(moe_layer - 1)[0] < 0) return by_count(moe_layer);
  CHECK(shape_.pairs);
  for (i64 e = 0; e < shape_.experts; e++)
    pair_scores_[static_cast<size_t>(e)] = kCountShare * count(moe_layer, e) * (1 - kDecay);
  for (i32 before : last_chosen(moe_layer - 1)) {
    const f32* shares = together(moe_layer, before);
    for (i64 e = 0; e < shape_.experts; e++) pair_scores_[static_cast<size_t>(e)] += shares[e];
  }
  ranking_.clear();
  for (i64 e = 0; e < shape_.experts; e++) ranking_.push_back({ExpertId(e), pair_scores_[static_cast<size_t>(e)]});
  auto end = ranking_.begin() + static_cast<std::ptrdiff_t>(width(1));
  std::partial_sort(ranking_.begin(), end, ranking_.end(), [](const RankedExpert& a, const RankedExpert& b) {
    return a.margin != b.margin ? a.margin > b.margin : a.expert < b.expert;
  });
  ranking_.erase(end, ranking_.end());
  f32 last = ranking_[static_cast<size_t>(shape_.top_k - 1)].margin;
  f32 spread = std::max(ranking_.front().margin - ranking_.back().margin, 1e-6f);
  for (RankedExpert& r : ranking_) r.margin = (r.margin - last) / spread;
  return ranking_;
}

void Predictor::begin(i64 moe_layer, i64 distance) {
  Forecast& f = forecast(moe_layer, distance);
  f.candidates.clear();
  f.rows = 0;
}

void Predictor::add_row(i64 moe_layer, i64 distance, std::span<const RankedExpert> ranking) {
  Forecast& f = forecast(moe_layer, distance);
  CHECK(f.rows < kMaxRows);
  const Fit& fit = fits_[static_cast<size_t>(distance - 1)];
  for (const RankedExpert& r : ranking.first(std::min(ranking.size(), static_cast<size_t>(width(1))))) {
    f32 often = frequency(moe_layer, r.expert);
    f32 p = logistic(fit.margin * r.margin + fit.frequency * often + fit.constant);
    f.candidates.push_back({r.expert, r.margin, often, p});
  }
  f.row_begin[static_cast<size_t>(++f.rows)] = static_cast<i64>(f.candidates.size());
}

std::span<const LikelyExpert> Predictor::likely(i64 moe_layer, i64 distance) {
  const Forecast& f = forecast(moe_layer, distance);
  likely_.clear();
  for (const Candidate& c : f.candidates) unwanted_[static_cast<size_t>(c.expert.value)] = 1;
  for (const Candidate& c : f.candidates) unwanted_[static_cast<size_t>(c.expert.value)] *= 1 - c.probability;
  for (const Candidate& c : f.candidates) {
    f32& none = unwanted_[static_cast<size_t>(c.expert.value)];
    if (none >= 0) likely_.push_back({c.expert, 1 - none});
    none = -1;  // taken
  }
  std::sort(likely_.begin(), likely_.end(), [](const LikelyExpert& a, const LikelyExpert& b) {
    return a.probability != b.probability ? a.probability > b.probability : a.expert < b.expert;
  });
  return likely_;
}

std::span<const LikelyExpert> Predictor::likely_of_row(i64 moe_layer, i64 distance, i64 row, i64 count) {
  const Forecast& f = forecast(moe_layer, distance);
  likely_.clear();
  if (row >= f.rows) return likely_;
  for (i64 i = f.row_begin[static_cast<size_t>(row)]; i < f.row_begin[static_cast<size_t>(row + 1)]; i++) {
    const Candidate& c = f.candidates[static_cast<size_t>(i)];
    likely_.push_back({c.expert, c.probability});
  }
  std::stable_sort(likely_.begin(), likely_.end(),
                   [](const LikelyExpert& a, const LikelyExpert& b) { return a.probability > b.probability; });
  return std::span(likely_).first(std::min(likely_.size(), static_cast<size_t>(count)));
}

void Predictor::observe(i64 moe_layer, std::span<const i32> ids, std::span<const f32> weights, i64 rows) {
  CHECK(static_cast<i64>(ids.size()) == rows * shape_.top_k && ids.size() == weights.size());
  for (i64 distance = 1; distance <= kMaxDistance; distance++) {
    Forecast& f = forecast(moe_layer, distance);
    if (f.rows == rows) judge(f, {moe_layer, distance}, ids, weights);
    begin(moe_layer, distance);
  }
  if (shape_.pairs && moe_layer > 0) update_pairs(moe_layer, ids.last(static_cast<size_t>(shape_.top_k)));
  update_counts(moe_layer, ids, rows);
}

// The last row's: the layer before has just been observed with the same rows.
void Predictor::update_pairs(i64 moe_layer, std::span<const i32> ids) {
  for (i32 before : last_chosen(moe_layer - 1)) {
    if (before < 0) return;
    f32* shares = together(moe_layer, before);
    for (i64 e = 0; e < shape_.experts; e++) shares[e] *= 1 - kPairStep;
    for (i32 id : ids) shares[id] += kPairStep;
  }
}

void Predictor::judge(const Forecast& f, Place place, std::span<const i32> ids, std::span<const f32> weights) {
  size_t k = static_cast<size_t>(shape_.top_k);
  for (size_t row = 0; row < static_cast<size_t>(f.rows); row++) {
    size_t begin = static_cast<size_t>(f.row_begin[row]), end = static_cast<size_t>(f.row_begin[row + 1]);
    judge_row(std::span(f.candidates).subspan(begin, end - begin), place, ids.subspan(row * k, k),
              weights.subspan(row * k, k));
  }
}

void Predictor::judge_row(std::span<const Candidate> row, Place place, std::span<const i32> ids,
                          std::span<const f32> weights) {
  ForecastScore& score = scores_[static_cast<size_t>(place.moe_layer * kMaxDistance + place.distance - 1)];
  score.slots += shape_.top_k;
  for (f32 w : weights) score.weight += static_cast<f64>(w);
  for (size_t i = 0; i < row.size(); i++) {
    auto chosen = std::find(ids.begin(), ids.end(), row[i].expert.value);
    bool wanted = chosen != ids.end();
    f64 error = static_cast<f64>(row[i].probability) - (wanted ? 1 : 0);
    score.judged++;
    score.squared_error += error * error;
    learn(fits_[static_cast<size_t>(place.distance - 1)], row[i], wanted);
    if (!wanted) continue;
    score.found_wide++;
    if (static_cast<i64>(i) >= shape_.top_k) continue;
    score.found_narrow++;
    score.weight_found += static_cast<f64>(weights[static_cast<size_t>(chosen - ids.begin())]);
  }
}

// One step down the gradient of the log loss.
void Predictor::learn(Fit& fit, const Candidate& c, bool wanted) {
  f32 step = kLearningRate * ((wanted ? 1.0f : 0.0f) - c.probability);
  fit.margin += step * c.margin;
  fit.frequency += step * c.frequency;
  fit.constant += step;
}

void Predictor::update_counts(i64 moe_layer, std::span<const i32> ids, i64 rows) {
  f32 decay = std::pow(kDecay, static_cast<f32>(rows));
  for (i64 e = 0; e < shape_.experts; e++) count(moe_layer, e) *= decay;
  for (i32 id : ids) count(moe_layer, id) += 1;
  std::copy_n(ids.end() - static_cast<std::ptrdiff_t>(shape_.top_k), shape_.top_k,
              previous_.begin() + static_cast<std::ptrdiff_t>(moe_layer * shape_.top_k));
}

}  // namespace stoker
