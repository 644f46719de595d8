#include "scheduler/trace/synthetic_routing.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "kernels/base/error.h"
#include "scheduler/trace/v3_popularity.h"

namespace stoker {

namespace {

constexpr std::array kProfiles = {
    RoutingProfile{"pessimistic", .07, .03, .30},
    RoutingProfile{"mid", .22, .18, .25},
    RoutingProfile{"default", .28, .20, .44},
    RoutingProfile{"optimistic", .30, .26, .40},
};

constexpr f32 kSlowFactor = 0.98f, kFastFactor = 0.5f;
constexpr f64 kDomainShare = 0.5;    // of a prompt's variance
constexpr f64 kDomainChange = 0.25;  // chance that a prompt begins another domain
// Ranks 1 and 8 of sigmoid gates with 8 of 256 experts; between them convex, with the sum 1.
constexpr f64 kFirstShare = .192, kLastShare = .093, kShareCurve = 2.296;
constexpr f64 kWeightJitter = .04;

// A layer's multiplier of the variance that changes within a prompt: the first layers repeat less, the middle more. A
// little above 1 on the whole, so that the mean over layers repeats as much as it would without.
f64 layer_multiplier(i64 index, i64 layers) {
  if (index < 3) return .5;
  if (index >= layers - layers / 12) return .9;
  bool middle = index >= layers / 3 && index < 2 * layers / 3;
  return middle ? 1.12 : 1.02;
}

// The quantile of ln(popularity) in the layer of DeepSeek-V3 that lies as deep.
f64 log_popularity(i64 index, i64 layers, f64 level) {
  size_t row = static_cast<size_t>(index * static_cast<i64>(kV3Popularity.size()) / layers);
  const auto& values = kV3Popularity[row];
  const auto& levels = kPopularityLevels;
  size_t above = static_cast<size_t>(std::upper_bound(levels.begin(), levels.end(), level) - levels.begin());
  if (above == 0) return values.front() * .01;
  if (above == levels.size()) return values.back() * .01;
  f64 part = (level - levels[above - 1]) / (levels[above] - levels[above - 1]);
  return .01 * (values[above - 1] + part * (values[above] - values[above - 1]));
}

std::vector<f32> rank_shares(i64 top_k) {
  std::vector<f32> shares;
  for (i64 k = 0; k < top_k; k++) {
    f64 from_last = top_k == 1 ? 1 : static_cast<f64>(top_k - 1 - k) / static_cast<f64>(top_k - 1);
    shares.push_back(static_cast<f32>(kLastShare + (kFirstShare - kLastShare) * std::pow(from_last, kShareCurve)));
  }
  f32 sum = std::accumulate(shares.begin(), shares.end(), 0.f);
  for (f32& share : shares) share /= sum;
  return shares;
}

template <class T>
void shuffle(std::vector<T>& values, Rng& rng) {
  for (size_t i = values.size(); i > 1; i--) std::swap(values[i - 1], values[static_cast<size_t>(rng.below(static_cast<i64>(i)))]);
}

f32 root(f64 variance) { return static_cast<f32>(std::sqrt(std::max(variance, 0.0))); }

}  // namespace

const RoutingProfile& routing_profile(std::string_view name) {
  for (const RoutingProfile& profile : kProfiles)
    if (profile.name == name) return profile;
  fail("{}: no such routing profile; they are pessimistic, mid, default and optimistic", name);
}

TraceHeader deepseek_v3_routing() {
  return {.model_name = "DeepSeek-V3", .layers = 58, .first_layer = 3, .experts = 256, .top_k = 8, .groups = 8, .groups_used = 4};
}

SyntheticRouting::SyntheticRouting(const SyntheticOptions& options)
    : options_(options), profile_(routing_profile(options.profile)), choice_(options.shape.experts, options.shape.groups),
      rng_(options.seed) {
  TraceHeader& h = options_.shape;
  check_trace_header(h, "synthetic routing");
  if (options.tokens < 1 || options.prompts < 1 || options.prompts > options.tokens)
    fail("synthetic routing: {} tokens do not make {} prompts", options.tokens, options.prompts);
  if (options.coupling < 0 || options.coupling > 1) fail("synthetic routing: a coupling of {} is not from 0 to 1", options.coupling);
  if (h.groups_used * (h.experts / h.groups) < h.top_k)
    fail("synthetic routing: {} groups of {} experts do not hold {}", h.groups_used, h.experts / h.groups, h.top_k);
  h.model_name = fmt::format("synthetic {} of {}", profile_.name, h.model_name);
  h.model_hash = trace_model_hash(h);
  size_t experts = static_cast<size_t>(h.experts);
  rank_shares_ = rank_shares(h.top_k);
  drawn_.resize(static_cast<size_t>(round_up(std::max(h.experts, h.top_k), 4)));
  scores_.resize(experts);
  new_fast_.resize(experts);
  new_rest_.resize(experts);
  layers_.resize(static_cast<size_t>(h.layers));
  for (i64 i = 0; i < h.layers; i++) set_up_layer(i);
}

void SyntheticRouting::set_up_layer(i64 index) {
  const TraceHeader& h = options_.shape;
  Layer& layer = layers_[static_cast<size_t>(index)];
  std::vector<f64> popularity;
  for (i64 e = 0; e < h.experts; e++)
    popularity.push_back(std::exp(log_popularity(index, h.layers, (static_cast<f64>(e) + .5) / static_cast<f64>(h.experts))));
  f64 sum = std::accumulate(popularity.begin(), popularity.end(), 0.0);
  for (f64 p : popularity) {
    f64 chosen = std::clamp(p / sum * static_cast<f64>(h.top_k), 1e-5, .95);
    layer.fixed.push_back(static_cast<f32>(-normal_quantile(1 - chosen)));
  }
  shuffle(layer.fixed, rng_);
  for (auto* part : {&layer.domain, &layer.prompt, &layer.slow, &layer.fast}) part->resize(layer.fixed.size());

  f64 changing = (profile_.slow + profile_.fast) * layer_multiplier(index, h.layers);
  f64 scale = std::min(changing, .99 - profile_.prompt) / (profile_.slow + profile_.fast);
  layer.prompt_sd = root(profile_.prompt);
  layer.slow_sd = root(profile_.slow * scale);
  layer.fast_sd = root(profile_.fast * scale);
  layer.new_sd = root(1 - profile_.prompt - (profile_.slow + profile_.fast) * scale);
}

f32* SyntheticRouting::draw(i64 count) {
  normal_.fill(rng_, drawn_.data(), round_up(count, 4));
  return drawn_.data();
}

void SyntheticRouting::begin_prompt() {
  i64 experts = options_.shape.experts;
  bool new_domain = prompt_ < 0 || rng_.uniform() < kDomainChange;
  for (Layer& layer : layers_) {
    if (new_domain) std::copy_n(draw(experts), experts, layer.domain.begin());
    const f32* own = draw(experts);
    f32 domain_sd = layer.prompt_sd * root(kDomainShare), own_sd = layer.prompt_sd * root(1 - kDomainShare);
    for (size_t e = 0; e < layer.prompt.size(); e++)
      layer.prompt[e] = layer.fixed[e] + layer.domain[e] * domain_sd + own[e] * own_sd;
    for (auto [part, sd] : {std::pair{&layer.slow, layer.slow_sd}, std::pair{&layer.fast, layer.fast_sd}}) {
      const f32* start = draw(experts);
      for (size_t e = 0; e < part->size(); e++) (*part)[e] = start[e] * sd;
    }
  }
  prompt_++;
  position_ = 0;
  prompt_tokens_ = options_.tokens / options_.prompts + (prompt_ < options_.tokens % options_.prompts ? 1 : 0);
}

bool SyntheticRouting::next(TraceRecord& record) {
  if (token_ == options_.tokens) return false;
  if (position_ == prompt_tokens_) begin_prompt();
  const TraceHeader& h = options_.shape;
  record.resize(h);
  record.scores.resize(static_cast<size_t>(h.layers * h.experts));
  record.sequence = prompt_;
  record.position = position_++;
  record.token = TraceRecord::kNoToken;
  record.phase = TracePhase::decode;
  for (i64 l = 0; l < h.layers; l++) {
    step(layers_[static_cast<size_t>(l)], l);
    std::copy(scores_.begin(), scores_.end(), record.scores.begin() + l * h.experts);
    choice_.choose(scores_.data(), h.top_k, h.groups_used, record.ids.data() + l * h.top_k);
    weigh(record.weights.data() + l * h.top_k);
  }
  std::fill(record.served.begin(), record.served.end(), u8{0});
  token_++;
  return true;
}

// Moves the layer's state by a token and makes its scores.
void SyntheticRouting::step(Layer& layer, i64 index) {
  size_t experts = layer.fixed.size();
  f32 kept = index == 0 ? 0.f : static_cast<f32>(options_.coupling);
  f32 fresh = root(1 - static_cast<f64>(kept) * kept);
  for (std::vector<f32>* news : {&new_fast_, &new_rest_}) {
    const f32* values = draw(static_cast<i64>(experts));
    if (kept > 0) std::rotate(news->begin(), news->begin() + 1, news->end());  // pairs expert e + 1 above with e here
    for (size_t e = 0; e < experts; e++) (*news)[e] = kept * (*news)[e] + fresh * values[e];
  }
  const f32* slow_news = draw(static_cast<i64>(experts));
  f32 slow_step = layer.slow_sd * root(1 - kSlowFactor * kSlowFactor);
  f32 fast_step = layer.fast_sd * root(1 - kFastFactor * kFastFactor);
  for (size_t e = 0; e < experts; e++) {
    layer.slow[e] = kSlowFactor * layer.slow[e] + slow_step * slow_news[e];
    layer.fast[e] = kFastFactor * layer.fast[e] + fast_step * new_fast_[e];
    scores_[e] = layer.prompt[e] + layer.slow[e] + layer.fast[e] + layer.new_sd * new_rest_[e];
  }
}

void SyntheticRouting::weigh(f32* weights) {
  i64 top_k = options_.shape.top_k;
  const f32* noise = draw(top_k);
  f32 sum = 0;
  for (i64 k = 0; k < top_k; k++) {
    weights[k] = rank_shares_[static_cast<size_t>(k)] * std::max(0.5f, 1 + static_cast<f32>(kWeightJitter) * noise[k]);
    sum += weights[k];
  }
  for (i64 k = 0; k < top_k; k++) weights[k] /= sum;
  std::sort(weights, weights + top_k, [](f32 a, f32 b) { return a > b; });
}

}  // namespace stoker
