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

// Candidates from the best down. Sorted as far as somebody asks, in growing steps: a draw seldom wants more than a few of a
// vocabulary's 129,000.
class Sampler::Ranking {
 public:
  explicit Ranking(std::vector<Candidate>& candidates) : candidates_(candidates) {}

  void keep_best(size_t count) {
    if (count >= candidates_.size()) return;
    sort_to(count);
    candidates_.resize(count);
  }

  size_t size() const { return candidates_.size(); }

  const Candidate& operator[](size_t rank) {
    while (rank >= sorted_) sort_to(std::max<size_t>(64, 4 * sorted_));
    return candidates_[rank];
  }

  // e^((logit - best logit) / temperature): the probability, up to a common factor.
  f64 weight(size_t rank, f64 temperature) { return weight_of((*this)[rank], temperature); }

  // Of all, in whatever order they are.
  f64 sum_of_weights(f64 temperature) {
    static_cast<void>((*this)[0]);
    f64 sum = 0;
    for (const Candidate& c : candidates_) sum += weight_of(c, temperature);
    return sum;
  }

 private:
  f64 weight_of(const Candidate& c, f64 temperature) const {
    return std::exp((static_cast<f64>(c.logit) - static_cast<f64>(candidates_.front().logit)) / temperature);
  }

  void sort_to(size_t count) {
    auto better = [](const Candidate& a, const Candidate& b) {
      return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
    };
    auto at = [&](size_t i) { return candidates_.begin() + static_cast<i64>(i); };
    if (count < candidates_.size() / 8) {
      std::partial_sort(at(sorted_), at(count), candidates_.end(), better);
    } else {  // by a heap it would take longer than by halving
      count = candidates_.size();
      std::sort(at(sorted_), candidates_.end(), better);
    }
    sorted_ = count;
  }

  std::vector<Candidate>& candidates_;
  size_t sorted_ = 0;
};

// How many of the best top-p and min-p leave; both look at the distribution before temperature.
size_t Sampler::count_kept(Ranking& ranking) const {
  if (options_.top_p >= 1 && options_.min_p <= 0) return ranking.size();
  f64 wanted = options_.top_p >= 1 ? std::numeric_limits<f64>::infinity() : options_.top_p * ranking.sum_of_weights(1);
  size_t count = 1;
  for (f64 sum = ranking.weight(0, 1); count < ranking.size() && sum < wanted; count++) {
    f64 weight = ranking.weight(count, 1);
    if (weight < options_.min_p) break;  // the best one's weight is 1
    sum += weight;
  }
  return count;
}

i32 Sampler::draw(std::vector<Candidate>& candidates) {
  Ranking ranking(candidates);
  if (options_.top_k > 0) ranking.keep_best(static_cast<size_t>(options_.top_k));
  size_t count = count_kept(ranking);
  f64 sum = 0;
  if (count == ranking.size()) {
    sum = ranking.sum_of_weights(options_.temperature);
  } else {
    for (size_t i = 0; i < count; i++) sum += ranking.weight(i, options_.temperature);
  }
  f64 left = rng_.uniform() * sum;
  for (size_t i = 0; i < count; i++) {
    f64 weight = ranking.weight(i, options_.temperature);
    if (left < weight) return ranking[i].token;
    left -= weight;
  }
  return ranking[0].token;  // rounding left something at the very end, or an infinite logit has no weight
}

}  // namespace stoker
