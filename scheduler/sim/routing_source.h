// RoutingSource: which experts each token wants. The simulator asks for one token after the other; generators are
// seeded, so that the same source always says the same.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/ids.h"
#include "kernels/base/types.h"
#include "scheduler/trace/emulated_lookahead.h"
#include "scheduler/trace/trace_format.h"

namespace stoker {

struct RoutedExpert {
  ExpertId expert;
  f32 gate_weight = 1;
};

class RoutingSource {
 public:
  virtual ~RoutingSource() = default;

  // Goes on to the next token, the first time to the first; false when there is none (a trace has ended).
  virtual bool next_token() = 0;
  // The distinct experts of this token in a MoE layer (index into ExpertTable::layers()), in any order. Layers are
  // asked for in ascending order, each once per token. `experts` has top-k places.
  virtual void route(i64 moe_layer, std::span<RoutedExpert> experts) = 0;
  // What the last route() was chosen by, [experts]; empty: not known.
  virtual std::span<const f32> scores() const { return {}; }
  // One line: what it is.
  virtual std::string describe() const = 0;
};

// Every expert of a layer equally likely.
std::unique_ptr<RoutingSource> uniform_routing(i64 experts, u64 seed);
// The expert of rank r (from 1) of a layer is drawn with weight r^-exponent, ranks shuffled per layer. Tokens are
// independent of each other.
std::unique_ptr<RoutingSource> zipf_routing(i64 moe_layers, i64 experts, f64 exponent, u64 seed);
// A trace's tokens, its layers in order and from the first again where there are more. `what` is said of it.
std::unique_ptr<RoutingSource> trace_routing(std::unique_ptr<TraceSource> trace, std::string what);

// Some tokens' routes, kept: bounds need to look ahead.
struct RoutingRecord {
  i64 moe_layers = 0, top_k = 0;
  std::vector<RoutedExpert> routes;  // [tokens][moe layers][top-k], by expert within a layer

  i64 tokens() const { return static_cast<i64>(routes.size()) / (moe_layers * top_k); }
  std::span<const RoutedExpert> layer(i64 token, i64 moe_layer) const {
    return std::span(routes).subspan(static_cast<size_t>((token * moe_layers + moe_layer) * top_k),
                                     static_cast<size_t>(top_k));
  }
};

// At most `tokens`: fewer when the source ends. `lookahead`, of as many layers, gets them too; may be null.
RoutingRecord record_routing(RoutingSource& source, i64 moe_layers, i64 top_k, i64 tokens,
                             EmulatedLookahead* lookahead = nullptr);

}  // namespace stoker
