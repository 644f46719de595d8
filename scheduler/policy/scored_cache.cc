#include "scheduler/policy/scored_cache.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace stoker {

namespace {

// What is expected with at least this probability goes after everything else.
constexpr f32 kLikely = .3f;
constexpr f64 kProtected = 1e6;

}  // namespace

ScoredCache::ScoredCache(const Plan& plan, i64 experts_per_layer, i64 top_k)
    : per_layer_(experts_per_layer),
      top_k_(std::min(top_k, experts_per_layer)),
      experts_(plan.class_of_moe_layer.size() * static_cast<size_t>(experts_per_layer)),
      classes_(plan.classes.size()),
      values_(experts_.size()),
      layers_(plan.class_of_moe_layer.size()) {
  for (i64 c : plan.class_of_moe_layer) {
    classes_[static_cast<size_t>(c)].layers.push_back(static_cast<i64>(class_of_.size()));
    class_of_.push_back(static_cast<size_t>(c));
  }
}

void ScoredCache::on_capacity(i64 slot_class, i64 slots) {
  Class& c = classes_[static_cast<size_t>(slot_class)];
  c.slots = slots;
  c.floor = std::clamp<i64>((slots - top_k_) / std::max<i64>(static_cast<i64>(c.layers.size()), 1), 0, top_k_);
}

void ScoredCache::on_layer(i64 moe_layer, i64 tokens) {
  now_++;
  turn(moe_layer, tokens);
  turn_ = moe_layer;
  for (i64 e = 0; e < per_layer_; e++) expert(moe_layer * per_layer_ + e).expected = 0;
  layers_[static_cast<size_t>(moe_layer)].valued = false;
}

void ScoredCache::on_use(ExpertKey key, i64 tokens, f32 gate_weight) {
  i64 node = index(key);
  used(key.moe_layer, node, tokens, gate_weight);
  expert(node).used = now_;
  revalue(node);
}

void ScoredCache::on_expect(ExpertKey key, f32 probability) {
  if (!is_probability()) return;
  i64 node = index(key);
  expert(node).expected = probability;
  revalue(node);
}

void ScoredCache::on_admit(ExpertKey key) {
  i64 node = index(key);
  Expert& e = expert(node);
  CHECK(!e.resident && e.pins == 0);
  e.resident = true;
  e.pins = 1;
  layers_[static_cast<size_t>(key.moe_layer)].resident++;
  admitted(node);
  revalue(node);
}

void ScoredCache::on_pin(ExpertKey key) {
  i64 node = index(key);
  CHECK(expert(node).resident);
  if (expert(node).pins++ > 0) return;
  Layer& layer = layers_[static_cast<size_t>(key.moe_layer)];
  if (node == layer.least[0] || node == layer.least[1]) layer.known = false;
}

void ScoredCache::on_unpin(ExpertKey key) {
  i64 node = index(key);
  CHECK(expert(node).pins > 0);
  if (--expert(node).pins > 0) return;
  Layer& layer = layers_[static_cast<size_t>(key.moe_layer)];
  if (!layer.known) return;
  i64& least = layer.least[expert(node).probation];
  if (least == kNone || goes_before(node, least)) least = node;
}

void ScoredCache::on_evict(ExpertKey key) {
  i64 node = index(key);
  Expert& e = expert(node);
  CHECK(e.resident && e.pins == 0);
  evicted(node);
  set_probation(node, false);
  e.resident = false;
  Layer& layer = layers_[static_cast<size_t>(key.moe_layer)];
  layer.resident--;
  layer.known = false;
}

void ScoredCache::set_probation(i64 node, bool probation) {
  Expert& e = expert(node);
  if (e.probation == probation) return;
  e.probation = probation;
  classes_[class_of_[static_cast<size_t>(layer_of(node))]].probation += probation ? 1 : -1;
  layers_[static_cast<size_t>(layer_of(node))].known = false;
}

void ScoredCache::values_changed() {
  for (Layer& layer : layers_) layer.valued = false;
}

i64 ScoredCache::index(ExpertKey key) const {
  DCHECK(key.expert.value >= 0 && key.expert.value < per_layer_);
  return key.moe_layer * per_layer_ + key.expert.value;
}

void ScoredCache::revalue(i64 node) const {
  Layer& layer = layers_[static_cast<size_t>(layer_of(node))];
  const Expert& e = expert(node);
  if (!layer.valued || !e.resident) return;
  f64 v = std::max(value(layer_of(node), node), static_cast<f64>(e.expected));
  values_[static_cast<size_t>(node)] = e.expected > kLikely ? kProtected + v : v;
  layer.known = false;
}

void ScoredCache::find_least(i64 moe_layer) const {
  Layer& layer = layers_[static_cast<size_t>(moe_layer)];
  i64 first = moe_layer * per_layer_, end = first + per_layer_;
  if (!layer.valued) {
    layer.valued = true;
    for (i64 node = first; node < end; node++) revalue(node);
  }
  layer.known = true;
  layer.least[0] = layer.least[1] = kNone;
  for (i64 node = first; node < end; node++) {
    const Expert& e = expert(node);
    if (!e.resident || e.pins > 0) continue;
    i64& least = layer.least[e.probation];
    if (least == kNone || goes_before(node, least)) least = node;
  }
}

// Within a layer, or between two.
bool ScoredCache::goes_before(i64 a, i64 b) const {
  f64 va = values_[static_cast<size_t>(a)], vb = values_[static_cast<size_t>(b)];
  if (va != vb) return va < vb;
  i64 da = distance(layer_of(a)), db = distance(layer_of(b));
  if (da != db) return da > db;
  if (expert(a).used != expert(b).used) return expert(a).used < expert(b).used;
  return a < b;
}

// How many turns until this layer's next one.
i64 ScoredCache::distance(i64 moe_layer) const {
  return moe_layer > turn_ ? moe_layer - turn_ : moe_layer - turn_ + layers();
}

// Turns until it is wanted, in cycles of all layers, if it is wanted with the same probability at each turn of its layer.
// So of two equal ones the layer that comes sooner keeps its own: it needs the slot for a shorter time.
f64 ScoredCache::cycles_to_use(i64 node) const {
  f64 p = values_[static_cast<size_t>(node)];
  if (p >= 1) return -p;
  return 1 / std::max(p, 1e-9) - 1 + static_cast<f64>(distance(layer_of(node))) / static_cast<f64>(layers());
}

bool ScoredCache::goes_before_other_layers(i64 a, i64 b) const {
  if (is_probability()) {
    f64 wait_a = cycles_to_use(a), wait_b = cycles_to_use(b);
    if (wait_a != wait_b) return wait_a > wait_b;
  }
  return goes_before(a, b);
}

bool ScoredCache::has_its_share(const Class& c, i64 moe_layer) const {
  return layers_[static_cast<size_t>(moe_layer)].resident * static_cast<i64>(c.layers.size()) >= c.slots;
}

i64 ScoredCache::least_valuable_of(i64 moe_layer, bool probation) const {
  const Layer& layer = layers_[static_cast<size_t>(moe_layer)];
  if (!layer.known || !layer.valued) find_least(moe_layer);
  return layer.least[probation];
}

i64 ScoredCache::least_valuable(const Class& c, i64 moe_layer, bool probation) const {
  i64 best = kNone;
  for (i64 l : c.layers) {
    if (l != moe_layer && layers_[static_cast<size_t>(l)].resident <= c.floor) continue;
    i64 node = least_valuable_of(l, probation);
    if (node != kNone && (best == kNone || goes_before_other_layers(node, best))) best = node;
  }
  return best;
}

std::optional<ExpertKey> ScoredCache::choose_victim(i64 moe_layer) const {
  const Class& c = classes_[class_of_[static_cast<size_t>(moe_layer)]];
  bool probation = static_cast<f64>(c.probation) > probation_share_ * static_cast<f64>(c.slots);
  i64 node = kNone;
  if (has_its_share(c, moe_layer)) {
    node = least_valuable_of(moe_layer, probation);
    if (node == kNone) node = least_valuable_of(moe_layer, !probation);
    if (node != kNone && expert(node).expected > kLikely) node = kNone;
  }
  if (node == kNone) node = least_valuable(c, moe_layer, probation);
  if (node == kNone) node = least_valuable(c, moe_layer, !probation);
  if (node == kNone) return std::nullopt;
  return ExpertKey{layer_of(node), ExpertId(node % per_layer_)};
}

std::optional<ExpertKey> ScoredCache::choose_victim_for(ExpertKey expected, f32 probability) const {
  std::optional<ExpertKey> victim = choose_victim(expected.moe_layer);
  if (victim && is_probability() && values_[static_cast<size_t>(index(*victim))] >= static_cast<f64>(probability))
    return std::nullopt;
  return victim;
}

f64 ScoredCache::worth(ExpertKey key) const {
  i64 node = index(key);
  if (is_probability()) return std::max(value(key.moe_layer, node), static_cast<f64>(expert(node).expected));
  return expert(node).used > 0 ? worth_of_recency(now_ - expert(node).used, layers()) : 0;
}

}  // namespace stoker
