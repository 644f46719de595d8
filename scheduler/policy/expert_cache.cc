#include "scheduler/policy/expert_cache.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace stoker {

namespace {

constexpr i64 kLongest = 8192;    // tokens after which nothing fades any more
constexpr f64 kLearning = .005;   // of the shares, per use: they follow some hundred tokens
constexpr i64 kKnownTokens = 64;  // that popularity counts for

}  // namespace

ExpertCache::ExpertCache(const Plan& plan, i64 experts_per_layer, i64 top_k, std::span<const f64> decays,
                         const Popularity* known)
    : ScoredCache(plan, experts_per_layer, top_k),
      decays_(decays.begin(), decays.end()),
      pasts_(static_cast<size_t>(nodes())),
      clocks_(static_cast<size_t>(layers())) {
  CHECK(!decays_.empty() && decays_.size() <= kMost);
  for (f64 decay : decays_) {
    std::vector<f32>& row = left_.emplace_back();
    f64 rest = 1;
    for (i64 i = 0; i < kLongest; i++, rest *= decay) row.push_back(static_cast<f32>(rest));
  }
  for (Clock& clock : clocks_)
    for (size_t k = 0; k < decays_.size(); k++) clock.shares[k] = 1. / static_cast<f64>(decays_.size());
  if (known != nullptr) begin_with(*known);
}

// As if some tokens had passed that each used every expert by its share: their counts fade like any other.
void ExpertCache::begin_with(const Popularity& known) {
  CHECK(known.moe_layers() == layers() && known.experts() == experts_per_layer());
  for (i64 node = 0; node < nodes(); node++) {
    i64 layer = layer_of(node);
    i64 tokens = std::min(kKnownTokens, static_cast<i64>(known.tokens(layer)));
    if (tokens == 0) continue;
    Past& past = pasts_[static_cast<size_t>(node)];
    past.time = clocks_[static_cast<size_t>(layer)].tokens = tokens;
    for (size_t k = 0; k < decays_.size(); k++)
      past.counts[k] = static_cast<f32>(known.share(layer, node % experts_per_layer()) * (1 - left(k, tokens)) / (1 - decays_[k]));
  }
  for (i64 layer = 0; layer < layers(); layer++) turn(layer, 0);
}

std::span<const f64> ExpertCache::shares(i64 moe_layer) const {
  return std::span(clocks_[static_cast<size_t>(moe_layer)].shares).first(decays_.size());
}

f64 ExpertCache::left(size_t count, i64 tokens) const {
  return static_cast<f64>(left_[count][static_cast<size_t>(std::min(tokens, kLongest - 1))]);
}

void ExpertCache::turn(i64 moe_layer, i64 tokens) {
  Clock& clock = clocks_[static_cast<size_t>(moe_layer)];
  clock.tokens += tokens;
  for (size_t k = 0; k < decays_.size(); k++) {
    // A geometric sum over all of the past; of the short past there is at first.
    clock.scale[k] = (1 - decays_[k]) / std::max(1 - left(k, clock.tokens), 1 - decays_[k]);
    // Which of a batch's tokens used an expert is not known: as if they had all through it.
    clock.per_use[k] = tokens > 1 ? (1 - left(k, tokens)) / ((1 - decays_[k]) * static_cast<f64>(tokens)) : 1;
  }
}

void ExpertCache::used(i64 moe_layer, i64 node, i64 tokens, f32) {
  Clock& clock = clocks_[static_cast<size_t>(moe_layer)];
  Past& past = pasts_[static_cast<size_t>(node)];
  learn(clock, past);
  i64 age = clock.tokens - past.time;
  for (size_t k = 0; k < decays_.size(); k++) {
    f64 before = static_cast<f64>(past.counts[k]) * left(k, age);
    past.counts[k] = static_cast<f32>(before + static_cast<f64>(tokens) * clock.per_use[k]);
  }
  past.time = clock.tokens;
}

// By what each count gave for the expert that is now used.
void ExpertCache::learn(Clock& clock, const Past& past) {
  if (decays_.size() == 1 || past.time == 0) return;
  std::array<f64, kMost> given{};
  f64 sum = 0;
  for (size_t k = 0; k < decays_.size(); k++) {
    given[k] = clock.shares[k] * clock.scale[k] * static_cast<f64>(past.counts[k]) * left(k, clock.tokens - past.time);
    sum += given[k];
  }
  if (sum <= 0) return;
  for (size_t k = 0; k < decays_.size(); k++) clock.shares[k] += kLearning * (given[k] / sum - clock.shares[k]);
}

f64 ExpertCache::value(i64 moe_layer, i64 node) const {
  const Clock& clock = clocks_[static_cast<size_t>(moe_layer)];
  const Past& past = pasts_[static_cast<size_t>(node)];
  f64 sum = 0;
  for (size_t k = 0; k < decays_.size(); k++)
    sum += clock.shares[k] * clock.scale[k] * static_cast<f64>(past.counts[k]) * left(k, clock.tokens - past.time);
  return sum;
}

}  // namespace stoker
