// Expectations: what the runtime expects the next batch to want of each layer, and what came of it. Numbers only; the
// scheduler acts on them.
// Owner: the scheduler's thread.
#pragma once

#include <span>
#include <vector>

#include "scheduler/policy/residency_policy.h"

namespace stoker {

struct ExpertExpectation {
  ExpertId expert;
  f32 probability = 0;  // that the next batch to come to its layer wants it
};

class Expectations {
 public:
  Expectations(i64 moe_layers, i64 experts_per_layer);

  // Replaces what was expected of this layer, here and in the policy.
  void replace(i64 moe_layer, std::span<const ExpertExpectation> expected, ResidencyPolicy& policy);
  // The layer has come. The policy knows by on_layer.
  void end(i64 moe_layer);

  f32 probability(ExpertKey key) const;
  // Those that something is expected of, in the order in which they were given.
  std::span<const ExpertId> of_layer(i64 moe_layer) const { return of_layer_[static_cast<size_t>(moe_layer)]; }

 private:
  std::vector<std::vector<ExpertId>> of_layer_;  // [moe layers]: those with a probability
  std::vector<f32> probability_;                 // [moe layers * experts]
  i64 experts_;
};

}  // namespace stoker
