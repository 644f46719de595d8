#include "runtime/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>

namespace stoker {

static constexpr f32 kInfinity = std::numeric_limits<f32>::infinity();

// Of so many logits the largest is found before any is looked at: a draw wants a few of a vocabulary's 129,000, and the
// largest of many are found by vector instructions.
static constexpr size_t kBlock = 64;

static size_t block_count(size_t logits) { return (logits + kBlock - 1) / kBlock; }

static std::span<const f32> block_of(std::span<const f32> logits, size_t index) {
  return logits.subspan(index * kBlock, std::min(kBlock, logits.size() - index * kBlock));
}

// -infinity where there is no number.
static f32 largest(std::span<const f32> block) {
  constexpr size_t kLanes = 16;
  std::array<f32, kLanes> best;
  best.fill(-kInfinity);
  size_t i = 0;
  for (; i + kLanes <= block.size(); i += kLanes)
    for (size_t k = 0; k < kLanes; k++) best[k] = block[i + k] > best[k] ? block[i + k] : best[k];
  for (; i < block.size(); i++) best[0] = block[i] > best[0] ? block[i] : best[0];
  return *std::max_element(best.begin(), best.end());
}

i32 argmax(std::span<const f32> logits) {
  size_t best = 0;
  f32 best_logit = -kInfinity;
  for (size_t b = 0; b < block_count(logits.size()); b++) {
    f32 logit = largest(block_of(logits, b));
    if (logit > best_logit) best = b;
    best_logit = std::max(best_logit, logit);
  }
  for (size_t i = best * kBlock; i < logits.size(); i++)
    if (logits[i] == best_logit) return static_cast<i32>(i);
  return 0;
}

Sampler::Sampler(const SamplerOptions& options, i64 vocab)
    : options_(options), rng_(options.seed), changed_(static_cast<size_t>(vocab)), best_(block_count(changed_.size())) {
  candidates_.reserve(changed_.size());
  ranked_.reserve(best_.size());
}

// The repeat penalty divides positive and multiplies negative logits of recent tokens (arXiv 1909.05858, section 4.1),
// once per token.
void Sampler::penalise(std::span<const i32> recent) {
  recent_.assign(recent.begin(), recent.end());
  std::sort(recent_.begin(), recent_.end());
  for (auto begin = recent_.begin(); begin != recent_.end();) {
    auto end = std::upper_bound(begin, recent_.end(), *begin);
    f32& logit = changed_[static_cast<size_t>(*begin)];
    logit = logit > 0 ? logit / options_.repeat_penalty : logit * options_.repeat_penalty;
    logit -= options_.presence_penalty + static_cast<f32>(end - begin) * options_.frequency_penalty;
    begin = end;
  }
}

i32 Sampler::sample(std::span<const f32> logits, std::span<const i32> history, TokenFilter* filter) {
  bool penalties = options_.repeat_penalty != 1 || options_.presence_penalty != 0 || options_.frequency_penalty != 0;
  if (penalties || !options_.logit_bias.empty()) {
    std::copy(logits.begin(), logits.end(), changed_.begin());
    logits = changed_;
  }
  for (auto [token, bias] : options_.logit_bias) changed_[static_cast<size_t>(token)] += bias;
  if (penalties) {
    size_t window = history.size();
    if (options_.repeat_window >= 0) window = std::min(window, static_cast<size_t>(options_.repeat_window));
    penalise(history.last(window));
  }
  i32 token = choose(logits);
  if (filter == nullptr || filter->allows(token)) return token;
  if (logits.data() != changed_.data()) std::copy(logits.begin(), logits.end(), changed_.begin());
  filter->mask(changed_);
  return choose(changed_);
}

i32 Sampler::choose(std::span<const f32> logits) {
  if (options_.temperature <= 0 || options_.top_k == 1) return argmax(logits);
  collect(logits);
  if (candidates_.empty()) return argmax(logits);
  return draw(candidates_);
}

// All numbers, or those from which the best top-k are taken: so many blocks have one that is as large as the last of these
// blocks' best, so what is smaller is not among them.
void Sampler::collect(std::span<const f32> logits) {
  candidates_.clear();
  f32 least = -kInfinity;
  size_t wanted = static_cast<size_t>(std::max<i64>(0, options_.top_k));
  bool few = wanted > 0 && wanted < best_.size();
  if (few) {
    for (size_t b = 0; b < best_.size(); b++) best_[b] = largest(block_of(logits, b));
    ranked_.assign(best_.begin(), best_.end());
    auto last = ranked_.begin() + static_cast<i64>(wanted - 1);
    std::nth_element(ranked_.begin(), last, ranked_.end(), std::greater<>());
    least = *last;
  }
  for (size_t b = 0; b < best_.size(); b++) {
    if (few && best_[b] < least) continue;
    std::span<const f32> block = block_of(logits, b);
    for (size_t i = 0; i < block.size(); i++)
      if (block[i] >= least && block[i] != -kInfinity) candidates_.push_back({static_cast<i32>(b * kBlock + i), block[i]});
  }
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
