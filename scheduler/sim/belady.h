// Belady: the hits of a cache that knows the future. No policy has more on this record.
#pragma once

#include <vector>

#include "scheduler/plan.h"
#include "scheduler/sim/routing_source.h"

namespace stoker {

// Hits per token with the plan's slots, starting empty. Each class of slots is one cache over all its layers; an
// expert that is wanted again later than all that are there takes no slot (bypass).
std::vector<i64> belady_hits(const RoutingRecord& record, i64 experts, const Plan& plan);

}  // namespace stoker
