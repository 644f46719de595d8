// Cache replay: a routing trace through a residency policy, with the events that the scheduler would send, and through
// Belady's optimum.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "scheduler/policy/residency_policy.h"
#include "scheduler/sim/routing_trace.h"

namespace stoker {

// Who shares slots: each layer has its own, or all layers have theirs together.
enum class Budget { per_layer, global };

// How many experts of each token were resident.
using TokenHits = std::vector<i32>;

// Slots around a policy, and who has them.
class CacheReplay {
 public:
  // A policy by its name (make_policy.h). `trace` must outlive this.
  CacheReplay(const RoutingTrace& trace, Budget budget, i64 slots_per_layer, const std::string& policy);

  // The token's experts of a layer are wanted: how many were in memory. Layers in order, then the next token.
  i32 step(i64 token, i64 layer);
  bool resident(i64 layer, i64 expert) const { return resident_[static_cast<size_t>(layer * trace_.experts + expert)]; }

 private:
  std::vector<bool>::reference at(ExpertKey key) {
    return resident_[static_cast<size_t>(key.moe_layer * trace_.experts + key.expert.value)];
  }
  bool make_room(i64 layer);

  const RoutingTrace& trace_;
  Budget budget_;
  std::vector<bool> resident_;
  std::vector<i64> free_;  // slots, by class
  std::unique_ptr<ResidencyPolicy> policy_;
};

TokenHits replay(const RoutingTrace& trace, Budget budget, i64 slots_per_layer, const std::string& policy);

// The most hits there can be: what is used last of all goes, and a missing expert that is used later than everything
// in memory does not enter at all. Hits of a step are served before its misses.
TokenHits replay_belady(const RoutingTrace& trace, Budget budget, i64 slots_per_layer);

// Percent of uses from token `begin` to `end`.
f64 hit_percent(const RoutingTrace& trace, const TokenHits& hits, i64 begin, i64 end);

}  // namespace stoker
