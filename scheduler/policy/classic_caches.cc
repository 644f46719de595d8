#include "scheduler/policy/classic_caches.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"

namespace stoker {

namespace {

// Rounds above, order of arrival below: exact in a double for 2 million rounds.
constexpr f64 kRound = 4294967296.;
constexpr f64 kAhead = 1e15;

}  // namespace

LfuCache::LfuCache(const Plan& plan, i64 experts_per_layer, i64 top_k)
    : ScoredCache(plan, experts_per_layer, top_k), uses_(static_cast<size_t>(nodes())) {}

void LfuCache::used(i64, i64 node, i64 tokens, f32) { uses_[static_cast<size_t>(node)] += static_cast<f64>(tokens); }
f64 LfuCache::value(i64, i64 node) const { return uses_[static_cast<size_t>(node)]; }

StaticCache::StaticCache(const Plan& plan, i64 experts, i64 top_k, const Popularity& known)
    : ScoredCache(plan, experts, top_k) {
  CHECK(known.moe_layers() == layers() && known.experts() == experts);
  for (i64 node = 0; node < nodes(); node++) shares_.push_back(known.share(layer_of(node), node % experts));
}

f64 StaticCache::value(i64, i64 node) const { return shares_[static_cast<size_t>(node)]; }

MrsCache::MrsCache(const Plan& plan, i64 experts_per_layer, i64 top_k)
    : ScoredCache(plan, experts_per_layer, top_k),
      log_score_(static_cast<size_t>(nodes()), -1e9),
      clock_(static_cast<size_t>(layers())) {}

void MrsCache::turn(i64 moe_layer, i64 tokens) { clock_[static_cast<size_t>(moe_layer)] += tokens; }

void MrsCache::used(i64 moe_layer, i64 node, i64, f32 gate_weight) {
  f64 time = static_cast<f64>(clock_[static_cast<size_t>(moe_layer)]);
  f64& log_score = log_score_[static_cast<size_t>(node)];
  f64 score = .5 * static_cast<f64>(gate_weight) + std::exp2(log_score - time);
  log_score = std::log2(std::max(score, 1e-30)) + time;
}

f64 MrsCache::value(i64 moe_layer, i64 node) const {
  return log_score_[static_cast<size_t>(node)] - static_cast<f64>(clock_[static_cast<size_t>(moe_layer)]);
}

LeastStaleCache::LeastStaleCache(const Plan& plan, i64 experts_per_layer, i64 top_k)
    : ScoredCache(plan, experts_per_layer, top_k), passed_(static_cast<size_t>(layers())) {}

void LeastStaleCache::turn(i64 moe_layer, i64) {
  if (moe_layer <= turn_layer()) {  // a new token
    std::fill(passed_.begin(), passed_.end(), false);
    values_changed();
  }
  passed_[static_cast<size_t>(moe_layer)] = true;
}

f64 LeastStaleCache::value(i64 moe_layer, i64 node) const {
  return static_cast<f64>(expert(node).used) + (passed_[static_cast<size_t>(moe_layer)] ? 0 : kAhead);
}

SlruCache::SlruCache(const Plan& plan, i64 experts_per_layer, i64 top_k)
    : ScoredCache(plan, experts_per_layer, top_k) {
  set_probation_share(.2);
}

void SlruCache::used(i64, i64 node, i64, f32) {
  if (expert(node).resident) set_probation(node, false);
}
void SlruCache::admitted(i64 node) { set_probation(node, true); }
f64 SlruCache::value(i64, i64 node) const { return static_cast<f64>(expert(node).used); }

S3FifoCache::S3FifoCache(const Plan& plan, i64 experts_per_layer, i64 top_k)
    : ScoredCache(plan, experts_per_layer, top_k), entries_(static_cast<size_t>(nodes())) {
  set_probation_share(.1);
}

void S3FifoCache::used(i64, i64 node, i64, f32) {
  if (!expert(node).resident) return;
  Entry& entry = entries_[static_cast<size_t>(node)];
  if (expert(node).probation) {
    set_probation(node, false);
    enter_main(entry);
  } else {
    entry.uses = std::min<i64>(entry.uses + 1, 3);
  }
}

void S3FifoCache::admitted(i64 node) {
  Entry& entry = entries_[static_cast<size_t>(node)];
  bool soon = entry.left >= 0 && evictions_ - entry.left <= slots_of(node);
  set_probation(node, !soon);
  if (soon)
    enter_main(entry);
  else
    entry = {.order = arrivals_++};
}

void S3FifoCache::enter_main(Entry& entry) { entry = {.order = arrivals_++, .round = round_}; }

void S3FifoCache::evicted(i64 node) {
  Entry& entry = entries_[static_cast<size_t>(node)];
  evictions_++;
  entry.left = expert(node).probation ? evictions_ : -1;
  if (!expert(node).probation) round_ = std::max(round_, entry.round + entry.uses);
}

f64 S3FifoCache::value(i64, i64 node) const {
  const Entry& entry = entries_[static_cast<size_t>(node)];
  return static_cast<f64>(entry.round + entry.uses) * kRound + static_cast<f64>(entry.order);
}

}  // namespace stoker
