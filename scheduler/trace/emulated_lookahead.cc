#include "scheduler/trace/emulated_lookahead.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"
#include "kernels/format/f16.h"

namespace stoker {

namespace {

constexpr u16 kNobody = 65535;
constexpr u64 kStream = 0x6c6f6f6b61686564;  // so that a routing of the same seed has other noise
constexpr i64 kMoreGroups = 2;  // as the runtime's lookahead: beyond top_k, groups that just miss take part
constexpr f64 kEarlyLoss = .1, kLateGain = .02, kMost = .995;
constexpr i64 kV3Layers = 58, kEarlyLayers = 3, kLateLayers = 19;  // of as many
constexpr f32 kDecay = 0.9786f;  // of a count per token: half in 32
constexpr f64 kPrior = 2;        // tokens' worth of the mean
// Of a score, given how often its expert was used lately. The rest of the variance is the prompt's and the slow part, which
// counts show.
constexpr f64 kUnknownDeviation = .8;
constexpr size_t kCountSteps = 512;
constexpr f32 kLowering = .25f;
constexpr i64 kMostLowerings = 16;  // more than any drawn score needs

}  // namespace

EmulatedLookahead::EmulatedLookahead(const TraceHeader& shape, const Options& options)
    : shape_(shape),
      options_(options),
      rng_(options.seed ^ kStream),
      choice_(shape.experts, shape.groups),
      counts_(static_cast<size_t>(shape.layers * shape.experts)),
      true_scores_(static_cast<size_t>(shape.experts)),
      scores_(static_cast<size_t>(shape.experts)),
      noise_(static_cast<size_t>(round_up(shape.experts, 4))),
      order_(static_cast<size_t>(shape.experts)) {
  CHECK(options.distances >= 1 && options.distances <= Predictor::kMaxDistance);
  for (i64 d = 1; d <= options.distances; d++) {
    width_[static_cast<size_t>(d - 1)] = ranking_width(shape.experts, shape.top_k, d);
    first_[static_cast<size_t>(d - 1)] = places_per_layer_;
    places_per_layer_ += width_[static_cast<size_t>(d - 1)];
  }
  f64 most = 1 / (1 - static_cast<f64>(kDecay)), mean = static_cast<f64>(shape.top_k) / static_cast<f64>(shape.experts);
  for (size_t i = 0; i <= kCountSteps; i++) {
    f64 used = static_cast<f64>(i) / kCountSteps * most;
    f64 p = std::clamp((used + kPrior * mean) / (most + kPrior), 1e-4, .98);
    score_of_count_.push_back(static_cast<f32>(-kUnknownDeviation * normal_quantile(1 - p)));
  }
}

const f32* EmulatedLookahead::draw() {
  normal_.fill(rng_, noise_.data(), static_cast<i64>(noise_.size()));
  return noise_.data();
}

// By how deep the layer lies in the model, in layers of DeepSeek-V3.
f64 EmulatedLookahead::correlation(i64 layer, i64 distance) const {
  f64 r = options_.quality[static_cast<size_t>(distance - 1)];
  if (r >= 1) return 1;
  i64 depth = layer * kV3Layers / shape_.layers;
  if (depth < kEarlyLayers) r -= kEarlyLoss;
  if (depth >= kV3Layers - kLateLayers) r += kLateGain;
  return std::min(r, kMost);
}

void EmulatedLookahead::add(const TraceRecord& record) {
  CHECK(static_cast<i64>(record.ids.size()) == shape_.slots());
  for (i64 layer = 0; layer < shape_.layers; layer++) {
    const u16* ids = record.ids.data() + layer * shape_.top_k;
    if (record.scores.empty())
      reconstruct(layer, ids);
    else
      std::copy_n(record.scores.begin() + layer * shape_.experts, shape_.experts, true_scores_.begin());
    scores_ = true_scores_;
    f64 before = 1;
    for (i64 d = 1; d <= options_.distances; d++) {
      f64 now = correlation(layer, d);
      f32 keep = static_cast<f32>(now / before), rest = std::sqrt(std::max(0.0f, 1 - keep * keep));
      const f32* noise = rest > 0 ? draw() : noise_.data();
      for (size_t e = 0; e < scores_.size(); e++) scores_[e] = keep * scores_[e] + rest * noise[e];
      rank(d);
      before = now;
    }
    count(layer, ids);
  }
  records_++;
}

// Draws scores with which the choice would have been `ids`: those that are drawn go, in order, to the chosen experts, then to
// the others in the order of their own.
void EmulatedLookahead::reconstruct(i64 layer, const u16* ids) {
  const f32* counts = counts_.data() + layer * shape_.experts;
  const f32* noise = draw();
  f32 steps = static_cast<f32>(kCountSteps) * (1 - kDecay);
  for (size_t e = 0; e < scores_.size(); e++) {
    size_t step = std::min(kCountSteps, static_cast<size_t>(counts[e] * steps));
    scores_[e] = score_of_count_[step] + static_cast<f32>(kUnknownDeviation) * noise[e];
    order_[e] = static_cast<u16>(e);
  }
  std::sort(order_.begin(), order_.end(), [&](u16 a, u16 b) {
    f32 x = scores_[a], y = scores_[b];
    return x != y ? x > y : a < b;
  });
  std::span<const u16> chosen(ids, static_cast<size_t>(shape_.top_k));
  size_t next = 0;
  for (u16 id : chosen) true_scores_[id] = scores_[order_[next++]];
  for (u16 id : order_)
    if (std::find(chosen.begin(), chosen.end(), id) == chosen.end()) true_scores_[id] = scores_[order_[next++]];
  lower_other_groups(chosen);
}

// A group without a chosen expert must not win against one with a single chosen expert.
void EmulatedLookahead::lower_other_groups(std::span<const u16> ids) {
  i64 size = shape_.experts / shape_.groups;
  for (i64 i = 0; shape_.groups > shape_.groups_used && i < kMostLowerings; i++) {
    choice_.choose(true_scores_.data(), shape_.top_k, shape_.groups_used, order_.data());
    std::span<const u16> won(order_.data(), ids.size());
    if (std::is_permutation(won.begin(), won.end(), ids.begin())) return;
    for (i64 g = 0; g < shape_.groups; g++) {
      if (std::any_of(ids.begin(), ids.end(), [&](u16 id) { return id / size == g; })) continue;
      for (i64 e = g * size; e < (g + 1) * size; e++) true_scores_[static_cast<size_t>(e)] -= kLowering;
    }
  }
}

// Appends the places of scores_: those that the model's own rule would choose, then the next best with more groups.
void EmulatedLookahead::rank(i64 distance) {
  size_t width = static_cast<size_t>(width_[static_cast<size_t>(distance - 1)]), first = places_.size();
  i64 chosen = choice_.choose(scores_.data(), shape_.top_k, shape_.groups_used, order_.data());
  f32 last_chosen = scores_[order_[static_cast<size_t>(chosen - 1)]];
  for (i64 i = 0; i < chosen; i++) places_.push_back({order_[static_cast<size_t>(i)], 0});
  i64 more = choice_.choose(scores_.data(), static_cast<i64>(width), shape_.groups_used + kMoreGroups, order_.data());
  for (i64 i = 0; i < more && places_.size() < first + width; i++) {
    u16 id = order_[static_cast<size_t>(i)];
    auto same = [&](Place p) { return p.expert == id; };
    if (std::none_of(places_.begin() + static_cast<std::ptrdiff_t>(first), places_.end(), same)) places_.push_back({id, 0});
  }
  std::span<Place> ranked = std::span(places_).subspan(first);
  f32 least = last_chosen, most = last_chosen;
  for (Place p : ranked) {
    least = std::min(least, scores_[p.expert]);
    most = std::max(most, scores_[p.expert]);
  }
  f32 spread = most > least ? most - least : 1.0f;
  for (Place& p : ranked) p.margin = f32_to_f16((scores_[p.expert] - last_chosen) / spread);
  places_.resize(first + width, {kNobody, 0});
}

void EmulatedLookahead::count(i64 layer, const u16* ids) {
  f32* counts = counts_.data() + layer * shape_.experts;
  for (i64 e = 0; e < shape_.experts; e++) counts[e] *= kDecay;
  for (i64 k = 0; k < shape_.top_k; k++) counts[ids[k]] += 1;
}

std::span<const RankedExpert> EmulatedLookahead::ranking(i64 record, i64 layer, i64 distance) {
  DCHECK(record < records_ && layer < shape_.layers && distance <= options_.distances);
  size_t d = static_cast<size_t>(distance - 1);
  const Place* place = places_.data() + (record * shape_.layers + layer) * places_per_layer_ + first_[d];
  ranking_.clear();
  for (i64 i = 0; i < width_[d] && place[i].expert != kNobody; i++)
    ranking_.push_back({ExpertId(place[i].expert), f16_to_f32(place[i].margin)});
  return ranking_;
}

}  // namespace stoker
