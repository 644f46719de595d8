// Routing by name: "synthetic:PROFILE" (synthetic_routing.h) or a trace's file.
#pragma once

#include <memory>
#include <string>

#include "scheduler/trace/trace_format.h"

namespace stoker {

struct RoutingRequest {
  std::string what;   // as given with --routing
  TraceHeader shape;  // of the model that is to follow it
  i64 tokens = 2048;  // at least, of synthetic routing
  i64 prompt_tokens = 512;  // of synthetic routing: so long they have a subject in common
  u64 seed = 1;
};

// Throws Error: no such file or profile, or the trace is of a model with other numbers of experts.
std::unique_ptr<TraceSource> open_routing(const RoutingRequest& request);

}  // namespace stoker
