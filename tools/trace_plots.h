// Charts of a routing trace: what caches of the engine's policies would make of it.
#pragma once

#include "scheduler/sim/routing_trace.h"
#include "tools/plot/svg_chart.h"

namespace stoker {

// Hit rate against the share of experts that have a slot, of every policy and of Belady's. Slots are shared by all
// layers, first reads are misses. Shows progress. Throws Interrupted.
LineChart hit_rate_chart(const RoutingTrace& trace);

// Share of the tokens during which an expert was in memory, with `slots` per layer and the engine's own policy.
HeatMap residency_map(const RoutingTrace& trace, i64 first_layer, i64 slots);

}  // namespace stoker
