// RoutingTrace: which experts the tokens of a real run wanted, layer by layer.
#pragma once

#include <string>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

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

// All traces below a folder, through bench/routing_data.py. Throws Error.
std::vector<RoutingTrace> read_routing_traces(const std::string& folder);

}  // namespace stoker
