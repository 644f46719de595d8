// PieceWants: how likely a piece of a prompt, many tokens at once, wants an expert. If a token wants it with probability p,
// one of n does with 1 - (1 - p)^n. p is not known: beforehand it is Beta(a, b) with the mean top-k / experts and a small a,
// because some experts are hot and many are cold, and each use or miss that an earlier piece saw adds to a or b. The mean of
// (1 - p)^n over that is B(a, b + n) / B(a, b). Pure. Owner: the scheduler's thread.
#pragma once

#include <vector>

#include "scheduler/policy/residency_policy.h"

namespace stoker {

class PieceWants {
 public:
  PieceWants(i64 moe_layers, i64 experts_per_layer, i64 top_k);

  // A piece of so many tokens comes to this layer; its uses follow.
  void on_layer(i64 moe_layer, i64 tokens);
  void on_use(ExpertKey key, i64 tokens);

  // That at least one of so many tokens wants the expert.
  f32 probability(ExpertKey key, i64 tokens) const;

 private:
  size_t index(ExpertKey key) const { return static_cast<size_t>(key.moe_layer * experts_ + key.expert.value); }

  i64 experts_;
  f64 first_b_;
  std::vector<f64> tokens_;   // [moe layers], older ones counting less
  std::vector<f64> uses_;     // [moe layers * experts], likewise
};

}  // namespace stoker
