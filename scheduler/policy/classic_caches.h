// Policies from the literature, for comparison: what they go by is all that differs (see ScoredCache). Each keeps the
// floors of layers, without which none of them could stream a model in order.
#pragma once

#include <vector>

#include "scheduler/policy/popularity.h"
#include "scheduler/policy/scored_cache.h"

namespace stoker {

// The expert with the fewest uses since the start goes.
class LfuCache final : public ScoredCache {
 public:
  LfuCache(const Plan& plan, i64 experts_per_layer, i64 top_k);

 private:
  void used(i64 moe_layer, i64 node, i64 tokens, f32 gate_weight) override;
  f64 value(i64 moe_layer, i64 node) const override;
  std::vector<f64> uses_;
};

// A fixed plan: the most popular experts stay, the others pass through the least popular's slot.
class StaticCache final : public ScoredCache {
 public:
  StaticCache(const Plan& plan, i64 experts_per_layer, i64 top_k, const Popularity& known);

 private:
  void used(i64, i64, i64, f32) override {}
  f64 value(i64 moe_layer, i64 node) const override;
  bool is_probability() const override { return true; }
  std::vector<f64> shares_;  // [moe layers * experts]
};

// HybriMoE's score: S = a * gate weight + (1 - a) * S at every token, a = 1/2.
class MrsCache final : public ScoredCache {
 public:
  MrsCache(const Plan& plan, i64 experts_per_layer, i64 top_k);

 private:
  void turn(i64 moe_layer, i64 tokens) override;
  void used(i64 moe_layer, i64 node, i64 tokens, f32 gate_weight) override;
  f64 value(i64 moe_layer, i64 node) const override;
  std::vector<f64> log_score_;  // log2 of the score, were the layer's clock at 0
  std::vector<i64> clock_;      // [moe layers] tokens
};

// SpecMD's: what this token passed by without using it goes before what is still ahead of it. Each least recent first.
class LeastStaleCache final : public ScoredCache {
 public:
  LeastStaleCache(const Plan& plan, i64 experts_per_layer, i64 top_k);

 private:
  void turn(i64 moe_layer, i64 tokens) override;
  void used(i64, i64, i64, f32) override {}
  f64 value(i64 moe_layer, i64 node) const override;
  std::vector<bool> passed_;  // [moe layers] by this token
};

// Segmented LRU: on probation (a fifth of the slots) until used a second time while resident.
class SlruCache final : public ScoredCache {
 public:
  SlruCache(const Plan& plan, i64 experts_per_layer, i64 top_k);

 private:
  void used(i64 moe_layer, i64 node, i64 tokens, f32 gate_weight) override;
  void admitted(i64 node) override;
  f64 value(i64 moe_layer, i64 node) const override;
};

// S3-FIFO: a small queue (a tenth of the slots) for newcomers; what is used again, or comes back soon after it left, goes
// to the main queue, where up to three uses buy as many more rounds. Rounds are counted instead of moving experts from
// the head to the tail: an expert's round is the one of its entry plus its uses.
class S3FifoCache final : public ScoredCache {
 public:
  S3FifoCache(const Plan& plan, i64 experts_per_layer, i64 top_k);

 private:
  struct Entry {
    i64 order = 0;  // of arrival in its queue
    i64 round = 0;
    i64 uses = 0;
    i64 left = -1;  // evictions before it left the small queue; -1: it did not
  };
  void used(i64 moe_layer, i64 node, i64 tokens, f32 gate_weight) override;
  void admitted(i64 node) override;
  void evicted(i64 node) override;
  f64 value(i64 moe_layer, i64 node) const override;
  void enter_main(Entry& entry);
  std::vector<Entry> entries_;
  i64 arrivals_ = 0, evictions_ = 0, round_ = 0;
};

}  // namespace stoker
