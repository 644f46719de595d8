#include "scheduler/sim/belady.h"

#include <limits>
#include <set>
#include <utility>

namespace stoker {

namespace {

constexpr i64 kNever = std::numeric_limits<i64>::max();

// When each access's expert is wanted again: the step (token * layers + layer), or never.
std::vector<i64> next_uses(const RoutingRecord& record, i64 experts) {
  std::vector<i64> next(record.routes.size());
  std::vector<i64> seen(static_cast<size_t>(record.moe_layers * experts), kNever);
  for (i64 i = static_cast<i64>(next.size()) - 1; i >= 0; i--) {
    i64 step = i / record.top_k;
    i64 key = step % record.moe_layers * experts + record.routes[static_cast<size_t>(i)].expert.value;
    next[static_cast<size_t>(i)] = std::exchange(seen[static_cast<size_t>(key)], step);
  }
  return next;
}

class Cache {
 public:
  explicit Cache(i64 slots) : slots_(static_cast<size_t>(slots)) {}

  // A use of a key that is here, whose next use is now known.
  void touch(i64 key, i64 step, i64 next) {
    by_next_.erase({step, key});
    by_next_.emplace(next, key);
  }
  // Returns the key that had to go: `key` itself, when all others are wanted earlier; -1: none.
  i64 offer(i64 key, i64 next) {
    if (next == kNever) return key;
    by_next_.emplace(next, key);
    if (by_next_.size() <= slots_) return -1;
    auto last = std::prev(by_next_.end());
    i64 gone = last->second;
    by_next_.erase(last);
    return gone;
  }

 private:
  size_t slots_;
  std::set<std::pair<i64, i64>> by_next_;  // (step of the next use, key)
};

}  // namespace

std::vector<i64> belady_hits(const RoutingRecord& record, i64 experts, const Plan& plan) {
  std::vector<i64> next = next_uses(record, experts);
  std::vector<bool> here(static_cast<size_t>(record.moe_layers * experts));
  std::vector<Cache> caches;
  for (const SlotClass& c : plan.classes) caches.emplace_back(c.slots);
  std::vector<i64> hits(static_cast<size_t>(record.tokens()));
  std::vector<std::pair<i64, i64>> missing;  // (key, next use)
  for (i64 step = 0; step < record.tokens() * record.moe_layers; step++) {
    i64 layer = step % record.moe_layers;
    Cache& cache = caches[static_cast<size_t>(plan.class_of_moe_layer[static_cast<size_t>(layer)])];
    missing.clear();
    // A layer's experts are wanted at the same time: what is there counts before anything new comes in.
    for (i64 i = step * record.top_k; i < (step + 1) * record.top_k; i++) {
      i64 key = layer * experts + record.routes[static_cast<size_t>(i)].expert.value;
      if (!here[static_cast<size_t>(key)]) {
        missing.emplace_back(key, next[static_cast<size_t>(i)]);
        continue;
      }
      cache.touch(key, step, next[static_cast<size_t>(i)]);
      hits[static_cast<size_t>(step / record.moe_layers)]++;
    }
    for (auto [key, use] : missing) {
      here[static_cast<size_t>(key)] = true;
      i64 gone = cache.offer(key, use);
      if (gone >= 0) here[static_cast<size_t>(gone)] = false;
    }
  }
  return hits;
}

}  // namespace stoker
