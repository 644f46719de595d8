#include "scheduler/expectations.h"

#include "kernels/base/check.h"

namespace stoker {

Expectations::Expectations(i64 moe_layers, i64 experts_per_layer)
    : of_layer_(static_cast<size_t>(moe_layers)),
      probability_(static_cast<size_t>(moe_layers * experts_per_layer)),
      experts_(experts_per_layer) {
  for (auto& experts : of_layer_) experts.reserve(static_cast<size_t>(experts_per_layer));
}

void Expectations::replace(i64 moe_layer, std::span<const ExpertExpectation> expected, ResidencyPolicy& policy) {
  auto& experts = of_layer_[static_cast<size_t>(moe_layer)];
  for (ExpertId expert : experts) policy.on_expect({moe_layer, expert}, 0);
  end(moe_layer);
  for (const ExpertExpectation& e : expected) {
    CHECK(e.expert.value >= 0 && e.expert.value < experts_);
    policy.on_expect({moe_layer, e.expert}, e.probability);
    probability_[static_cast<size_t>(moe_layer * experts_ + e.expert.value)] = e.probability;
    experts.push_back(e.expert);
  }
}

void Expectations::end(i64 moe_layer) {
  auto& experts = of_layer_[static_cast<size_t>(moe_layer)];
  for (ExpertId expert : experts) probability_[static_cast<size_t>(moe_layer * experts_ + expert.value)] = 0;
  experts.clear();
}

f32 Expectations::probability(ExpertKey key) const {
  return probability_[static_cast<size_t>(key.moe_layer * experts_ + key.expert.value)];
}

}  // namespace stoker
