// Cache replay: a routing trace through a residency policy, with the events that the scheduler would send, and through
// Belady's optimum.
#pragma once

#include <string>
#include <vector>

#include "bench/routing_trace.h"

namespace stoker {

// Who shares slots: each layer has its own, or all layers have theirs together.
enum class Budget { per_layer, global };

// How many experts of each token were resident.
using TokenHits = std::vector<i32>;

TokenHits replay(const RoutingTrace& trace, Budget budget, i64 slots_per_layer, const std::string& policy);

// The most hits there can be: what is used last of all goes, and a missing expert that is used later than everything
// in memory does not enter at all. Hits of a step are served before its misses.
TokenHits replay_belady(const RoutingTrace& trace, Budget budget, i64 slots_per_layer);

// Percent of uses from token `begin` to `end`.
f64 hit_percent(const RoutingTrace& trace, const TokenHits& hits, i64 begin, i64 end);

}  // namespace stoker
