// ClairvoyantCache: the residency policy that knows the future. RAM gives up what is used last (Belady's choice); on devices
// an expert is worth what Future says. Nobody's expectations tell it anything.
#pragma once

#include <set>
#include <utility>
#include <vector>

#include "scheduler/plan.h"
#include "scheduler/policy/residency_policy.h"
#include "scheduler/sim/future.h"

namespace stoker {

class ClairvoyantCache final : public ResidencyPolicy {
 public:
  // `future` must outlive it, and have passed a layer before the scheduler comes to it.
  ClairvoyantCache(const Plan& plan, i64 experts_per_layer, const Future& future);

  void on_capacity(i64, i64) override {}
  void on_layer(i64 moe_layer, i64 tokens) override;
  void on_use(ExpertKey, i64, f32) override {}
  void on_expect(ExpertKey, f32) override {}
  void on_admit(ExpertKey key) override;
  void on_pin(ExpertKey key) override;
  void on_unpin(ExpertKey key) override;
  void on_evict(ExpertKey key) override;
  std::optional<ExpertKey> choose_victim(i64 moe_layer) const override;
  // None as well when all candidates are used before `expected` is.
  std::optional<ExpertKey> choose_victim_for(ExpertKey expected, f32 probability) const override;
  f64 worth(ExpertKey key) const override { return future_.device_worth(key); }

 private:
  struct Expert {
    i64 next = 0;  // as in candidates_
    i32 pins = 0;
    bool resident = false;
  };
  using Order = std::set<std::pair<i64, i64>>;  // (step of the next use, node)
  i64 node(ExpertKey key) const { return key.moe_layer * per_layer_ + key.expert.value; }
  ExpertKey key(i64 node) const { return {node / per_layer_, ExpertId(node % per_layer_)}; }
  Expert& expert(i64 node) { return experts_[static_cast<size_t>(node)]; }
  Order& order(i64 node) { return candidates_[static_cast<size_t>(class_of_layer_[static_cast<size_t>(node / per_layer_)])]; }
  void insert(i64 node);

  const Future& future_;
  i64 per_layer_;
  std::vector<i64> class_of_layer_;
  std::vector<Expert> experts_;    // [moe layers * experts]
  std::vector<Order> candidates_;  // [classes] that could leave
};

}  // namespace stoker
