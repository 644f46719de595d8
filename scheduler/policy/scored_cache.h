// ScoredCache: what policies share that give every expert a value and let the least valuable one go.
//
// A value may change only when its layer's turn comes, or when its own expert is used, admitted or expected: so each
// layer's values are computed once per turn, its least valuable expert is remembered, and a victim costs one comparison
// per layer plus a walk through the numbers of the layer that lost the last one. Never all experts of the model.
//
// Like LruCache, every layer keeps a floor of experts (see there). A layer that has its share of the slots replaces its own
// experts: letting values decide between such layers as well cost 1 to 5 points of hits on real traces (bench/cache).
// Experts may be on probation: as long as there are more of them than their share of the slots, one of them goes first.
// Among equals it is the layer furthest ahead in the cycle of layers, then the least recently used.
#pragma once

#include <vector>

#include "scheduler/plan.h"
#include "scheduler/policy/residency_policy.h"

namespace stoker {

class ScoredCache : public ResidencyPolicy {
 public:
  ScoredCache(const Plan& plan, i64 experts_per_layer, i64 top_k);

  void on_capacity(i64 slot_class, i64 slots) final;
  void on_layer(i64 moe_layer, i64 tokens) final;
  void on_use(ExpertKey key, i64 tokens, f32 gate_weight) final;
  void on_expect(ExpertKey key, f32 probability) final;
  void on_admit(ExpertKey key) final;
  void on_pin(ExpertKey key) final;
  void on_unpin(ExpertKey key) final;
  void on_evict(ExpertKey key) final;
  std::optional<ExpertKey> choose_victim(i64 moe_layer) const final;
  std::optional<ExpertKey> choose_victim_for(ExpertKey expected, f32 probability) const final;
  f64 worth(ExpertKey key) const final;

 protected:
  struct Expert {
    i64 used = 0;  // when last; 0: never
    f32 expected = 0;
    i32 pins = 0;
    bool resident = false;
    bool probation = false;
  };

  // The batch at hand is `tokens` tokens of this layer; called before its uses.
  virtual void turn(i64 /*moe_layer*/, i64 /*tokens*/) {}
  virtual void used(i64 moe_layer, i64 node, i64 tokens, f32 gate_weight) = 0;
  virtual void admitted(i64 /*node*/) {}
  virtual void evicted(i64 /*node*/) {}
  virtual f64 value(i64 moe_layer, i64 node) const = 0;
  // Whether values are probabilities, so that they can be compared with expected ones. Expectations are ignored if not.
  virtual bool is_probability() const { return false; }

  Expert& expert(i64 node) { return experts_[static_cast<size_t>(node)]; }
  const Expert& expert(i64 node) const { return experts_[static_cast<size_t>(node)]; }
  i64 nodes() const { return static_cast<i64>(experts_.size()); }
  i64 layers() const { return static_cast<i64>(layers_.size()); }
  i64 experts_per_layer() const { return per_layer_; }
  i64 layer_of(i64 node) const { return node / per_layer_; }
  i64 now() const { return now_; }         // counts layers' turns
  i64 turn_layer() const { return turn_; }  // the layer of the last one; -1: none yet
  i64 slots_of(i64 node) const { return classes_[class_of_[static_cast<size_t>(layer_of(node))]].slots; }
  void set_probation_share(f64 share) { probation_share_ = share; }
  void set_probation(i64 node, bool probation);
  void values_changed();  // of all layers

 private:
  static constexpr i64 kNone = -1;
  struct Layer {
    i64 resident = 0;
    bool valued = false;  // values_ hold for its residents
    bool known = false;   // least holds
    i64 least[2] = {kNone, kNone};  // node that goes first; [1]: of those on probation
  };
  struct Class {
    std::vector<i64> layers;
    i64 slots = 0, floor = 0, probation = 0;
  };

  i64 index(ExpertKey key) const;
  void revalue(i64 node) const;
  void find_least(i64 moe_layer) const;
  bool goes_before(i64 a, i64 b) const;
  bool goes_before_other_layers(i64 a, i64 b) const;
  f64 cycles_to_use(i64 node) const;
  i64 distance(i64 moe_layer) const;
  bool has_its_share(const Class& c, i64 moe_layer) const;
  i64 least_valuable_of(i64 moe_layer, bool probation) const;
  i64 least_valuable(const Class& c, i64 moe_layer, bool probation) const;

  i64 per_layer_, top_k_;
  f64 probation_share_ = 0;  // 0: nobody is
  i64 now_ = 0, turn_ = -1;
  std::vector<Expert> experts_;       // [moe layers * experts]
  std::vector<size_t> class_of_;      // [moe layers]
  std::vector<Class> classes_;
  // What is computed when a victim is asked for, and would be the same at any earlier time.
  mutable std::vector<f64> values_;   // [moe layers * experts]
  mutable std::vector<Layer> layers_;
};

}  // namespace stoker
