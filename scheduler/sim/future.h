// Future: what is still to come of a recorded routing, for a policy that knows it. Moves on as its layers are passed.
//
// What a place on a device is worth to an expert. Say that a place costs `price` per token, whoever has it, that going there
// costs `move`, and that each use there earns 1. Then the best times of an expert to be there follow from its uses alone,
// backwards from the last; and D, what it is worth to be there over not to be, obeys
//     D(t) = use(t) - price + clip(D(t + 1), 0, move)
// because who is not there may still go for `move`, and who is there may leave for nothing. With the price at which as many
// experts stay as there are places (found by halving), doing what D says is the best of all schedules, but for exchanges that
// wait for their turn: Lagrange's relaxation of the bound on places.
#pragma once

#include <limits>
#include <vector>

#include "scheduler/policy/residency_policy.h"
#include "scheduler/sim/routing_source.h"

namespace stoker {

class Future {
 public:
  static constexpr i64 kNever = std::numeric_limits<i64>::max();

  // `record` must outlive it. `places`: experts that devices hold. `move`: what taking one there costs, in uses.
  Future(const RoutingRecord& record, i64 experts_per_layer, i64 places, f64 move);

  // So many tokens, from `first` on, have come to this layer: what they use is past.
  void pass(i64 moe_layer, i64 first, i64 tokens);
  // The step (token * layers + layer) when it is used next.
  i64 next_use(ExpertKey key) const;
  // D as of the token after the next: an exchange that begins now has ended then. Never below 0.
  f64 device_worth(ExpertKey key) const;
  f64 move() const { return move_; }

 private:
  struct Use {
    i64 token = 0;
    f64 worth = 0;  // D
  };
  size_t node(ExpertKey key) const { return static_cast<size_t>(key.moe_layer * experts_ + key.expert.value); }
  std::span<Use> uses_of(size_t node) { return std::span(uses_).subspan(first_[node], first_[node + 1] - first_[node]); }
  void collect_uses();
  void value(f64 price);
  f64 mean_stay(f64 price);
  void find_price(i64 places);

  const RoutingRecord& record_;
  i64 experts_;
  f64 move_, price_ = 0;
  std::vector<Use> uses_;      // of each expert of each layer, ascending
  std::vector<size_t> first_;  // [moe layers * experts + 1] into uses_
  std::vector<size_t> next_;   // [moe layers * experts] into uses_: the first that is not past
  std::vector<i64> passed_;    // [moe layers] tokens
};

}  // namespace stoker
