#include "scheduler/policy/placement.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace stoker {

namespace {

// Gains within this share of the best are the same: the device with less work decides.
constexpr f64 kAlike = .9;
// Of an expert that nothing is known of: so that free slots are shared by work then too.
constexpr f64 kLeastWorth = 1e-9;

}  // namespace

Placement::Placement(const Plan& plan, i64 experts_per_layer, const PlacementRules& rules)
    : per_layer_(experts_per_layer),
      class_of_layer_(plan.class_of_moe_layer),
      cpu_gb_per_second_(plan.cpu_gb_per_second),
      places_(plan.class_of_moe_layer.size() * static_cast<size_t>(experts_per_layer)),
      devices_(plan.devices.size()),
      ram_slots_(plan.classes.size()),
      moves_left_(plan.classes.size()) {
  for (const SlotClass& c : plan.classes) expert_bytes_.push_back(c.device_slot_bytes);
  for (size_t d = 0; d < devices_.size(); d++) {
    const DevicePlan& p = plan.devices[d];
    Device& device = devices_[d];
    device.experts.resize(plan.classes.size());
    device.rank.resize(plan.classes.size());
    device.free.resize(plan.classes.size());
    device.kept = p.exchange_slots;
    device.gb_per_second = p.gb_per_second;
    device.link_gb_per_second = p.link_gb_per_second;
    for (size_t c = 0; c < plan.classes.size(); c++) {
      device.experts[c].reserve(static_cast<size_t>(p.slots[c]));
      device.rank[c].reserve(static_cast<size_t>(p.slots[c]));
    }
  }
  set_rules(rules);
  used_.reserve(places_.size());
  candidates_.reserve(places_.size());
}

void Placement::set_rules(const PlacementRules& rules) {
  rules_ = rules;
  i64 largest = 0;
  for (i64 bytes : expert_bytes_) largest = std::max(largest, bytes);
  for (Device& device : devices_) {
    device.allowance_bytes = device.link_gb_per_second * static_cast<f64>(rules.allowance_ns);
    device.most_bytes = std::max(device.allowance_bytes, static_cast<f64>(largest));
  }
}

void Placement::on_use_in_ram(ExpertKey key) {
  if (used_.size() < used_.capacity()) used_.push_back(key);
}

void Placement::on_pass(i64 tokens) {
  now_ += tokens;
  piece_tokens_ = 0;
  for (Device& d : devices_)
    d.credit_bytes = std::min(d.credit_bytes + d.allowance_bytes * static_cast<f64>(tokens), d.most_bytes);
}

void Placement::on_piece_layer(i64 moe_layer, i64 tokens) {
  piece_tokens_ = tokens;
  piece_layer_ = moe_layer;
  f64 share = static_cast<f64>(tokens) / static_cast<f64>(class_of_layer_.size());
  for (Device& d : devices_) {
    f64 bytes = d.allowance_bytes * share;
    d.credit_bytes = std::min(d.credit_bytes + bytes, std::max(d.most_bytes, bytes));
  }
}

void Placement::choose(const ResidencyPolicy& policy, std::span<const ExpertKey> candidates, const Room& room,
                       std::vector<Move>& moves) {
  moves.clear();
  rank_victims(policy, room);
  candidates_.clear();
  for (ExpertKey k : candidates) candidates_.push_back({std::max(policy.worth(k), kLeastWorth), node(k)});
  used_.clear();
  std::sort(candidates_.begin(), candidates_.end());
  short_of_room_ = false;
  for (const Candidate& candidate : candidates_) {
    if (place(candidate.node).moving) continue;
    DCHECK(place(candidate.node).device == kNowhere);
    i64& left = moves_left_[class_of(candidate.node)];
    if (left == 0) {
      short_of_room_ = true;
      continue;
    }
    std::optional<Move> move = best_move(candidate);
    if (!move) continue;
    left--;
    begin(*move, candidate.worth);
    moves.push_back(*move);
  }
  // Nothing is left to catch up with: what comes now is everyday change.
  if (piece_tokens_ == 0 && !short_of_room_ && !candidates_.empty()) catching_up_ = false;
}

bool Placement::may_leave(i64 n) const {
  const Place& p = places_[static_cast<size_t>(n)];
  if (p.moving) return false;
  if (piece_tokens_ > 0) return n / per_layer_ <= piece_layer_ && now_ + piece_tokens_ - p.since >= rules_.dwell_tokens;
  return catching_up_ || now_ - p.since >= rules_.dwell_tokens;
}

// What may leave, and the work that devices are expected to have per token.
void Placement::rank_victims(const ResidencyPolicy& policy, const Room& room) {
  size_t classes = expert_bytes_.size();
  for (size_t d = 0; d < devices_.size(); d++) {
    Device& device = devices_[d];
    device.load_ns = 0;
    for (size_t c = 0; c < classes; c++) {
      device.free[c] = room.device_slots[d * classes + c];
      std::vector<Candidate>& rank = device.rank[c];
      rank.clear();
      f64 expert_ns = static_cast<f64>(expert_bytes_[c]) / device.gb_per_second;
      for (i32 n : device.experts[c]) {
        f64 worth = std::max(policy.worth(key(n)), kLeastWorth);
        device.load_ns += worth * expert_ns;
        if (may_leave(n)) rank.push_back({worth, n});
      }
      std::sort(rank.begin(), rank.end());
    }
  }
  std::copy(room.ram_slots.begin(), room.ram_slots.end(), ram_slots_.begin());
  std::copy(room.most_moves.begin(), room.most_moves.end(), moves_left_.begin());
}

f64 Placement::saved_ns(const Device& device, size_t slot_class) const {
  return static_cast<f64>(expert_bytes_[slot_class]) * (1 / cpu_gb_per_second_ - 1 / device.gb_per_second);
}

// To the device where it gains most.
std::optional<Placement::Move> Placement::best_move(const Candidate& candidate) {
  size_t c = class_of(candidate.node);
  std::optional<Move> best;
  f64 best_gain = 0, best_load = 0;
  for (size_t d = 0; d < devices_.size(); d++) {
    Device& device = devices_[d];
    f64 saved = saved_ns(device, c);
    bool alone = device.free[c] > device.kept[c];
    if (saved <= 0) continue;
    bool limited = !catching_up_ || piece_tokens_ > 0;
    if (!alone && limited && device.credit_bytes < static_cast<f64>(expert_bytes_[c])) continue;
    f64 victim = 0;
    if (!alone) {
      if (device.rank[c].empty()) continue;
      victim = device.rank[c].back().worth;
      if (candidate.worth <= victim * rules_.factor + (piece_tokens_ > 0 ? rules_.piece_margin : rules_.margin)) continue;
      if (device.free[c] == 0 || ram_slots_[c] == 0) {
        short_of_room_ = true;
        continue;
      }
    }
    f64 gain = (candidate.worth - victim) * saved;
    bool better = !best || gain * kAlike > best_gain || (gain > best_gain * kAlike && device.load_ns < best_load);
    if (!better) continue;
    best = Move{key(candidate.node), static_cast<i32>(d), {}};
    if (!alone) best->down = key(device.rank[c].back().node);
    best_gain = gain;
    best_load = device.load_ns;
  }
  return best;
}

void Placement::begin(const Move& move, f64 worth) {
  i64 up = node(move.up);
  size_t c = class_of(up);
  Device& device = devices_[static_cast<size_t>(move.device)];
  f64 expert_ns = static_cast<f64>(expert_bytes_[c]) / device.gb_per_second;
  place(up).moving = true;
  device.free[c]--;
  device.load_ns += worth * expert_ns;
  if (!move.down) return;
  device.load_ns -= device.rank[c].back().worth * expert_ns;
  device.rank[c].pop_back();
  place(node(*move.down)).moving = true;
  ram_slots_[c]--;
  device.credit_bytes = std::max(0., device.credit_bytes - static_cast<f64>(expert_bytes_[c]));
}

void Placement::on_end(const Move& move, bool moved) {
  place(node(move.up)).moving = false;
  if (move.down) place(node(*move.down)).moving = false;
  if (!moved) return;
  if (move.down) leave(node(*move.down));
  enter(node(move.up), move.device);
}

void Placement::on_lost(i64 device) {
  Device& d = devices_[static_cast<size_t>(device)];
  for (std::vector<i32>& experts : d.experts) {
    for (i32 n : experts) place(n).device = kNowhere;
    experts.clear();
  }
  d.count = 0;
}

void Placement::enter(i64 n, i32 device) {
  Device& d = devices_[static_cast<size_t>(device)];
  std::vector<i32>& list = d.experts[class_of(n)];
  Place& p = place(n);
  CHECK(p.device == kNowhere);
  p = {.device = device, .position = static_cast<i32>(list.size()), .since = now_ + piece_tokens_, .moving = p.moving};
  list.push_back(static_cast<i32>(n));
  d.count++;
}

void Placement::leave(i64 n) {
  Place& p = place(n);
  CHECK(p.device != kNowhere);
  Device& d = devices_[static_cast<size_t>(p.device)];
  std::vector<i32>& list = d.experts[class_of(n)];
  list[static_cast<size_t>(p.position)] = list.back();
  place(list.back()).position = p.position;
  list.pop_back();
  p.device = kNowhere;
  d.count--;
}

}  // namespace stoker
