#include "scheduler/sim/clairvoyant_cache.h"

#include "kernels/base/check.h"

namespace stoker {

ClairvoyantCache::ClairvoyantCache(const Plan& plan, i64 experts_per_layer, const Future& future)
    : future_(future),
      per_layer_(experts_per_layer),
      class_of_layer_(plan.class_of_moe_layer),
      experts_(plan.class_of_moe_layer.size() * static_cast<size_t>(experts_per_layer)),
      candidates_(plan.classes.size()) {}

// What the layer uses now is next used later.
void ClairvoyantCache::on_layer(i64 moe_layer, i64) {
  for (i64 n = moe_layer * per_layer_; n < (moe_layer + 1) * per_layer_; n++) {
    Expert& e = expert(n);
    if (!e.resident || e.pins > 0 || e.next == future_.next_use(key(n))) continue;
    order(n).erase({e.next, n});
    insert(n);
  }
}

void ClairvoyantCache::insert(i64 n) {
  Expert& e = expert(n);
  e.next = future_.next_use(key(n));
  order(n).insert({e.next, n});
}

void ClairvoyantCache::on_admit(ExpertKey key) {
  Expert& e = expert(node(key));
  CHECK(!e.resident && e.pins == 0);
  e.resident = true;
  e.pins = 1;
}

void ClairvoyantCache::on_pin(ExpertKey key) {
  Expert& e = expert(node(key));
  CHECK(e.resident);
  if (e.pins++ == 0) order(node(key)).erase({e.next, node(key)});
}

void ClairvoyantCache::on_unpin(ExpertKey key) {
  Expert& e = expert(node(key));
  CHECK(e.pins > 0);
  if (--e.pins == 0) insert(node(key));
}

void ClairvoyantCache::on_evict(ExpertKey key) {
  Expert& e = expert(node(key));
  CHECK(e.resident && e.pins == 0);
  order(node(key)).erase({e.next, node(key)});
  e.resident = false;
}

std::optional<ExpertKey> ClairvoyantCache::choose_victim(i64 moe_layer) const {
  const Order& order = candidates_[static_cast<size_t>(class_of_layer_[static_cast<size_t>(moe_layer)])];
  if (order.empty()) return std::nullopt;
  return key(order.rbegin()->second);
}

std::optional<ExpertKey> ClairvoyantCache::choose_victim_for(ExpertKey expected, f32) const {
  std::optional<ExpertKey> victim = choose_victim(expected.moe_layer);
  if (victim && future_.next_use(*victim) <= future_.next_use(expected)) return std::nullopt;
  return victim;
}

}  // namespace stoker
