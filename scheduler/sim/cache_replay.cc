#include "scheduler/sim/cache_replay.h"

#include <algorithm>
#include <limits>
#include <set>

#include "scheduler/policy/make_policy.h"

namespace stoker {

namespace {

i64 classes_of(const RoutingTrace& trace, Budget budget) { return budget == Budget::global ? 1 : trace.layers; }
i64 class_of(i64 layer, Budget budget) { return budget == Budget::global ? 0 : layer; }
i64 slots_of(const RoutingTrace& trace, Budget budget, i64 per_layer) {
  return budget == Budget::global ? per_layer * trace.layers : per_layer;
}

// For each use, the token that uses the same expert next.
std::vector<i64> next_uses(const RoutingTrace& trace) {
  constexpr i64 kNever = std::numeric_limits<i64>::max() / 2;
  std::vector<i64> next(trace.ids.size()), coming(static_cast<size_t>(trace.layers * trace.experts), kNever);
  for (i64 t = trace.tokens() - 1; t >= 0; t--)
    for (i64 l = 0; l < trace.layers; l++)
      for (size_t i = trace.at(t, l), end = i + static_cast<size_t>(trace.top_k); i < end; i++) {
        i64& when = coming[static_cast<size_t>(l * trace.experts + trace.ids[i])];
        next[i] = when;
        when = t * trace.layers + l;
      }
  return next;
}

}  // namespace

CacheReplay::CacheReplay(const RoutingTrace& trace, Budget budget, i64 slots_per_layer, const std::string& policy)
    : trace_(trace),
      budget_(budget),
      resident_(static_cast<size_t>(trace.layers * trace.experts)),
      free_(static_cast<size_t>(classes_of(trace, budget)), slots_of(trace, budget, slots_per_layer)) {
  Plan plan;
  plan.classes.resize(free_.size());
  for (i64 l = 0; l < trace.layers; l++) plan.class_of_moe_layer.push_back(class_of(l, budget));
  policy_ = make_policy(policy, plan, trace.experts, trace.top_k);
  for (size_t c = 0; c < free_.size(); c++) policy_->on_capacity(static_cast<i64>(c), free_[c]);
}

i32 CacheReplay::step(i64 token, i64 layer) {
  policy_->on_layer(layer, 1);
  std::vector<ExpertKey> missing, pinned;
  for (size_t i = trace_.at(token, layer), end = i + static_cast<size_t>(trace_.top_k); i < end; i++) {
    ExpertKey key{layer, ExpertId(trace_.ids[i])};
    policy_->on_use(key, 1, trace_.weights[i]);
    if (at(key)) {
      policy_->on_pin(key);
      pinned.push_back(key);
    } else {
      missing.push_back(key);
    }
  }
  i32 hits = static_cast<i32>(pinned.size());
  for (ExpertKey key : missing) {
    if (!make_room(layer)) continue;
    policy_->on_admit(key);
    at(key) = true;
    pinned.push_back(key);
  }
  for (ExpertKey key : pinned) policy_->on_unpin(key);
  return hits;
}

bool CacheReplay::make_room(i64 layer) {
  i64& free = free_[static_cast<size_t>(class_of(layer, budget_))];
  if (free > 0) {
    free--;
    return true;
  }
  std::optional<ExpertKey> victim = policy_->choose_victim(layer);
  if (!victim) return false;
  policy_->on_evict(*victim);
  at(*victim) = false;
  return true;
}

TokenHits replay(const RoutingTrace& trace, Budget budget, i64 slots_per_layer, const std::string& policy) {
  CacheReplay run(trace, budget, slots_per_layer, policy);
  TokenHits hits(static_cast<size_t>(trace.tokens()));
  for (i64 t = 0; t < trace.tokens(); t++)
    for (i64 l = 0; l < trace.layers; l++) hits[static_cast<size_t>(t)] += run.step(t, l);
  return hits;
}

TokenHits replay_belady(const RoutingTrace& trace, Budget budget, i64 slots_per_layer) {
  using Entry = std::pair<i64, i64>;  // next use, layer * experts + expert
  std::vector<std::set<Entry>> cached(static_cast<size_t>(classes_of(trace, budget)));
  size_t slots = static_cast<size_t>(slots_of(trace, budget, slots_per_layer));
  std::vector<i64> next = next_uses(trace);
  TokenHits hits(static_cast<size_t>(trace.tokens()));
  for (i64 t = 0; t < trace.tokens(); t++) {
    for (i64 l = 0; l < trace.layers; l++) {
      std::set<Entry>& set = cached[static_cast<size_t>(class_of(l, budget))];
      std::vector<Entry> missing;
      for (size_t i = trace.at(t, l), end = i + static_cast<size_t>(trace.top_k); i < end; i++) {
        i64 node = l * trace.experts + trace.ids[i];
        bool hit = set.erase({t * trace.layers + l, node}) > 0;
        hits[static_cast<size_t>(t)] += hit;
        if (hit)
          set.insert({next[i], node});
        else
          missing.emplace_back(next[i], node);
      }
      for (const Entry& entry : missing) {
        set.insert(entry);
        if (set.size() > slots) set.erase(std::prev(set.end()));
      }
    }
  }
  return hits;
}

f64 hit_percent(const RoutingTrace& trace, const TokenHits& hits, i64 begin, i64 end) {
  end = std::min(end, trace.tokens());
  i64 sum = 0;
  for (i64 t = begin; t < end; t++) sum += hits[static_cast<size_t>(t)];
  return end > begin ? 100. * static_cast<f64>(sum) / static_cast<f64>((end - begin) * trace.layers * trace.top_k) : 0;
}

}  // namespace stoker
