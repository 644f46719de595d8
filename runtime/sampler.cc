#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace stoker {

static constexpr f32 kInfinity = std::numeric_limits<f32>::infinity();

i32 argmax(std::span<const f32> logits) {
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); i++)
    if (logits[i] > logits[best] || (std::isnan(logits[best]) && !std::isnan(logits[i]))) best = i;
  return static_cast<i32>(best);
}

Sampler::Sampler(const SamplerOptions& options, i64 vocab)
    : options_(options), rng_(options.seed), penalised_(static_cast<size_t>(vocab)) {
  candidates_.reserve(static_cast<size_t>(vocab));
}

// Softmax over the candidates in order; returns their probabilities in `p`.
template <class Candidates>
static std::vector<f64> probabilities(const Candidates& candidates, f64 temperature) {
  std::vector<f64> p(candidates.size());
  f64 best = candidates.front().logit, sum = 0;
  for (size_t i = 0; i < p.size(); i++) sum += p[i] = std::exp((candidates[i].logit - best) / temperature);
  for (f64& value : p) value /= sum;
  return p;
}

// The repeat penalty divides positive and multiplies negative logits of recent tokens (arXiv 1909.05858, section 4.1),
// once per token.
void Sampler::penalise(std::span<const i32> recent) {
  recent_.assign(recent.begin(), recent.end());
  std::sort(recent_.begin(), recent_.end());
  for (auto begin = recent_.begin(); begin != recent_.end();) {
    auto end = std::upper_bound(begin, recent_.end(), *begin);
    f32& logit = penalised_[static_cast<size_t>(*begin)];
    logit = logit > 0 ? logit / options_.repeat_penalty : logit * options_.repeat_penalty;
    logit -= options_.presence_penalty + static_cast<f32>(end - begin) * options_.frequency_penalty;
    begin = end;
  }
}

i32 Sampler::sample(std::span<const f32> logits, std::span<const i32> history, TokenFilter* filter) {
  std::copy(logits.begin(), logits.end(), penalised_.begin());
  for (auto [token, bias] : options_.logit_bias) penalised_[static_cast<size_t>(token)] += bias;
  if (options_.repeat_penalty != 1 || options_.presence_penalty != 0 || options_.frequency_penalty != 0) {
    size_t window = history.size();
    if (options_.repeat_window >= 0) window = std::min(window, static_cast<size_t>(options_.repeat_window));
    penalise(history.last(window));
  }
  i32 token = choose();
  if (filter == nullptr || filter->allows(token)) return token;
  filter->mask(penalised_);
  return choose();
}

i32 Sampler::choose() {
  if (options_.temperature <= 0 || options_.top_k == 1) return argmax(penalised_);
  candidates_.clear();
  for (size_t i = 0; i < penalised_.size(); i++)
    if (!std::isnan(penalised_[i]) && penalised_[i] != -kInfinity) candidates_.push_back({static_cast<i32>(i), penalised_[i]});
  if (candidates_.empty()) return argmax(penalised_);
  return draw(candidates_);
}

i32 Sampler::draw(std::vector<Candidate>& candidates) {
  auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  };
  size_t keep = candidates.size();
  if (options_.top_k > 0) keep = std::min(keep, static_cast<size_t>(options_.top_k));
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<i64>(keep), candidates.end(), better);
  candidates.resize(keep);

  std::vector<f64> p = probabilities(candidates, 1.0);  // top-p and min-p look at the untempered distribution
  size_t count = candidates.size();
  if (options_.top_p < 1) {
    f64 sum = 0;
    size_t n = 0;
    while (n < count && sum < options_.top_p) sum += p[n++];
    count = std::max<size_t>(1, n);
  }
  if (options_.min_p > 0) {
    f64 limit = options_.min_p * p[0];
    while (count > 1 && p[count - 1] < limit) count--;
  }
  candidates.resize(count);

  p = probabilities(candidates, options_.temperature);
  f64 u = rng_.uniform();
  for (size_t i = 0; i < count; i++) {
    if (u < p[i]) return candidates[i].token;
    u -= p[i];
  }
  return candidates.front().token;  // rounding left u at the very end
}

}  // namespace stoker
