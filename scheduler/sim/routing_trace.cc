#include "scheduler/sim/routing_trace.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "scheduler/trace/trace_format.h"

namespace stoker {

RoutingTrace RoutingTrace::first(i64 count) const {
  RoutingTrace part = *this;
  size_t n = at(std::min(count, tokens()), 0);
  part.ids.resize(n);
  part.weights.resize(n);
  return part;
}

RoutingTrace RoutingTrace::then(const RoutingTrace& next) const {
  RoutingTrace both = *this;
  both.ids.insert(both.ids.end(), next.ids.begin(), next.ids.end());
  both.weights.insert(both.weights.end(), next.weights.begin(), next.weights.end());
  return both;
}

RoutingTrace read_routing_trace(TraceSource& source) {
  const TraceHeader& h = source.header();
  RoutingTrace trace{.name = h.model_name, .layers = h.layers, .experts = h.experts, .top_k = h.top_k, .ids = {}, .weights = {}};
  for (TraceRecord record; source.next(record);) {
    trace.ids.insert(trace.ids.end(), record.ids.begin(), record.ids.end());
    trace.weights.insert(trace.weights.end(), record.weights.begin(), record.weights.end());
  }
  if (trace.ids.empty()) fail("the trace has no record");
  return trace;
}

}  // namespace stoker
