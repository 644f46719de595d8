#include "scheduler/policy/lru_cache.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace stoker {

LruCache::LruCache(const Plan& plan, i64 experts_per_layer, i64 top_k)
    : experts_(experts_per_layer),
      top_k_(std::min(top_k, experts_per_layer)),
      nodes_(plan.class_of_moe_layer.size() * static_cast<size_t>(experts_per_layer)),
      class_of_(plan.class_of_moe_layer),
      resident_(plan.class_of_moe_layer.size()),
      classes_(plan.classes.size()) {
  for (i64 c : class_of_) classes_[static_cast<size_t>(c)].layers++;
}

void LruCache::on_capacity(i64 slot_class, i64 slots) {
  Class& c = classes_[static_cast<size_t>(slot_class)];
  c.floor = std::clamp<i64>((slots - top_k_) / std::max<i64>(c.layers, 1), 0, top_k_);
}

void LruCache::on_use(ExpertKey key, i64, f32) {
  i32 node = index(key);
  nodes_[static_cast<size_t>(node)].used = now_;
  if (!nodes_[static_cast<size_t>(node)].resident) return;
  unlink(node);
  link_newest(node);
}

void LruCache::on_admit(ExpertKey key) {
  admit(key);
  link_newest(index(key));
}

void LruCache::on_fill(ExpertKey key) {
  admit(key);
  link_oldest(index(key));
}

void LruCache::admit(ExpertKey key) {
  Node& n = nodes_[static_cast<size_t>(index(key))];
  CHECK(!n.resident && n.pins == 0);
  n.resident = true;
  n.pins = 1;
  resident_[static_cast<size_t>(key.moe_layer)]++;
}

void LruCache::on_pin(ExpertKey key) {
  Node& n = nodes_[static_cast<size_t>(index(key))];
  CHECK(n.resident);
  n.pins++;
}

void LruCache::on_unpin(ExpertKey key) {
  Node& n = nodes_[static_cast<size_t>(index(key))];
  CHECK(n.pins > 0);
  n.pins--;
}

void LruCache::on_evict(ExpertKey key) {
  i32 node = index(key);
  Node& n = nodes_[static_cast<size_t>(node)];
  CHECK(n.resident && n.pins == 0);
  n.resident = false;
  unlink(node);
  resident_[static_cast<size_t>(key.moe_layer)]--;
}

std::optional<ExpertKey> LruCache::choose_victim(i64 moe_layer) const {
  const Class& c = classes_[static_cast<size_t>(class_of_[static_cast<size_t>(moe_layer)])];
  for (i32 node = c.oldest; node != kNone; node = nodes_[static_cast<size_t>(node)].newer) {
    if (nodes_[static_cast<size_t>(node)].pins > 0) continue;
    i64 layer = node / experts_;
    if (layer == moe_layer || resident_[static_cast<size_t>(layer)] > c.floor)
      return ExpertKey{layer, ExpertId(node % experts_)};
  }
  return std::nullopt;
}

f64 LruCache::worth(ExpertKey key) const {
  i64 used = nodes_[static_cast<size_t>(index(key))].used;
  return used > 0 ? worth_of_recency(now_ - used, static_cast<i64>(resident_.size())) : 0;
}

i32 LruCache::index(ExpertKey key) const {
  DCHECK(key.expert.value >= 0 && key.expert.value < experts_);
  return static_cast<i32>(key.moe_layer * experts_ + key.expert.value);
}

LruCache::Class& LruCache::class_of(i32 node) {
  return classes_[static_cast<size_t>(class_of_[static_cast<size_t>(node / experts_)])];
}

void LruCache::link_newest(i32 node) {
  Class& c = class_of(node);
  Node& n = nodes_[static_cast<size_t>(node)];
  n.older = c.newest;
  n.newer = kNone;
  if (c.newest != kNone) nodes_[static_cast<size_t>(c.newest)].newer = node;
  c.newest = node;
  if (c.oldest == kNone) c.oldest = node;
}

void LruCache::link_oldest(i32 node) {
  Class& c = class_of(node);
  Node& n = nodes_[static_cast<size_t>(node)];
  n.older = kNone;
  n.newer = c.oldest;
  if (c.oldest != kNone) nodes_[static_cast<size_t>(c.oldest)].older = node;
  c.oldest = node;
  if (c.newest == kNone) c.newest = node;
}

void LruCache::unlink(i32 node) {
  Class& c = class_of(node);
  const Node& n = nodes_[static_cast<size_t>(node)];
  if (n.newer != kNone)
    nodes_[static_cast<size_t>(n.newer)].older = n.older;
  else
    c.newest = n.older;
  if (n.older != kNone)
    nodes_[static_cast<size_t>(n.older)].newer = n.newer;
  else
    c.oldest = n.newer;
}

}  // namespace stoker
