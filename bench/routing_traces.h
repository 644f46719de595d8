// Routing traces of other projects, for bench/cache.
#pragma once

#include <string>
#include <vector>

#include "scheduler/sim/routing_trace.h"

namespace stoker {

// All traces below a folder, through bench/routing_data.py. Throws Error.
std::vector<RoutingTrace> read_routing_traces(const std::string& folder);

}  // namespace stoker
