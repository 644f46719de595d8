// RoutingTrace: which experts the tokens of a run wanted, layer by layer, in memory. Plain data.
#pragma once

#include <string>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

class TraceSource;

struct RoutingTrace {
  std::string name;
  i64 layers = 0, experts = 0, top_k = 0;
  std::vector<i32> ids;      // [tokens][layers][top_k]
  std::vector<f32> weights;  // the same
  i64 tokens() const { return static_cast<i64>(ids.size()) / (layers * top_k); }
  size_t at(i64 token, i64 layer) const { return static_cast<size_t>((token * layers + layer) * top_k); }
  // So many of the first tokens; then, all of `next` after them (of the same shape).
  RoutingTrace first(i64 tokens) const;
  RoutingTrace then(const RoutingTrace& next) const;
};

// All of its records. Throws Error for a damaged one, or when there is none.
RoutingTrace read_routing_trace(TraceSource& source);

}  // namespace stoker
