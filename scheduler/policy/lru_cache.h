// LruCache: the least recently used expert goes, except that every layer keeps a floor of experts.
//
// Plain LRU over all layers hits nothing at all once a token's experts (layers x top-k) no longer fit: each
// expert is evicted just before its layer comes round again. The floor of a layer is min(top-k, (slots -
// top-k) / layers): what is above the floors (at least top-k slots) is where the misses of the current layer
// land, all at the same time.
#pragma once

#include <vector>

#include "scheduler/plan.h"
#include "scheduler/policy/residency_policy.h"

namespace stoker {

class LruCache final : public ResidencyPolicy {
 public:
  // Slots start at 0 (see on_capacity); of the plan only the classes' layers are used.
  LruCache(const Plan& plan, i64 experts_per_layer, i64 top_k);

  void on_capacity(i64 slot_class, i64 slots) override;
  void on_layer(i64, i64) override { now_++; }
  void on_use(ExpertKey key, i64 tokens, f32 gate_weight) override;
  void on_expect(ExpertKey, f32) override {}
  void on_admit(ExpertKey key) override;
  void on_fill(ExpertKey key) override;
  void on_pin(ExpertKey key) override;
  void on_unpin(ExpertKey key) override;
  void on_evict(ExpertKey key) override;
  std::optional<ExpertKey> choose_victim(i64 moe_layer) const override;
  // Recency knows no worth: the oldest, as for an expert that is wanted.
  std::optional<ExpertKey> choose_victim_for(ExpertKey expected, f32) const override {
    return choose_victim(expected.moe_layer);
  }
  f64 worth(ExpertKey key) const override;

  i64 floor(i64 slot_class) const { return classes_[static_cast<size_t>(slot_class)].floor; }
  i64 resident(i64 moe_layer) const { return resident_[static_cast<size_t>(moe_layer)]; }

 private:
  static constexpr i32 kNone = -1;
  // Doubly linked list through all experts; only resident ones are linked.
  struct Node {
    i32 newer = kNone, older = kNone;
    i32 pins = 0;
    bool resident = false;
    i64 used = 0;  // the turn of a layer; 0: never
  };
  struct Class {
    i32 newest = kNone, oldest = kNone;
    i64 layers = 0;
    i64 floor = 0;
  };

  i32 index(ExpertKey key) const;
  Class& class_of(i32 node);
  void admit(ExpertKey key);
  void link_newest(i32 node);
  void link_oldest(i32 node);
  void unlink(i32 node);

  i64 experts_;
  i64 top_k_;
  i64 now_ = 0;  // turns of layers
  std::vector<Node> nodes_;    // [moe layers * experts]
  std::vector<i64> class_of_;  // [moe layers]
  std::vector<i64> resident_;  // [moe layers]
  std::vector<Class> classes_;
};

}  // namespace stoker
