// Devices' part of the scheduler: when exchanges begin and end, and what they do to the entries, slots and policy of
// both experts. Copies and VRAM slots themselves are device_tier's.
#include "scheduler/scheduler_impl.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/log.h"
#include "scheduler/tiers/slice.h"

namespace stoker {

namespace {

constexpr i64 kMostExchanges = 256;  // under way at a time, of a class of slots

}  // namespace

// What the least that works leaves; the plan says how many at most.
i64 Scheduler::Impl::most_kept(size_t c) const {
  return std::clamp<i64>(slab.usable_slots(static_cast<i64>(c)) - std::min(table.top_k(), table.experts_per_layer()), 0,
                         plan.classes[c].exchange_slots);
}

void Scheduler::Impl::keep_exchange_slots(size_t c) {
  while (kept_slots[c] < most_kept(c)) {
    SlotId slot = slab.take(static_cast<i64>(c));
    if (!slot.valid()) return;
    exchange_slots[c].push_back(slot);
    kept_slots[c]++;
  }
}

DeviceTier::RamPlace Scheduler::Impl::ram_place(ExpertKey key, SlotId slot) const {
  ExpertReads reads = expert_reads(table, layer_of(key.moe_layer), key.expert, plan.alignment);
  DeviceTier::RamPlace place{.slot = slot, .matrices = {}};
  for (size_t m = 0; m < place.matrices.size(); m++) place.matrices[m] = slab.data(slot) + reads.matrix_at_slot[m];
  return place;
}

void Scheduler::Impl::poll_devices() {
  devices->poll();
  for (i64 lost = devices->next_lost(); lost >= 0; lost = devices->next_lost()) lose_device(lost);
  settle_exchanges(false);
}

void Scheduler::Impl::settle_exchanges(bool border) {
  Exchange ended;
  while (devices->next(border, ended)) end(ended);
}

// Both experts change places, or none.
void Scheduler::Impl::end(const Exchange& exchange) {
  const Placement::Move& move = exchange.move;
  size_t c = static_cast<size_t>(exchange.to.slot_class);
  policy->on_unpin(move.up);
  devices->placement().on_end(move, exchange.good());
  if (!exchange.good()) {
    stats.failed_exchanges++;
    devices->vram().give_back(exchange.to);
    if (move.down) exchange_slots[c].push_back(exchange.ram_slot);
    return;
  }
  policy->on_evict(move.up);
  SlotId left = std::exchange(entry(move.up), {.slot = {}, .vram = exchange.to, .state = State::on_device}).slot;
  i64 bytes = table.expert_bytes(layer_of(move.up.moe_layer));
  stats.promotions++;
  stats.uploaded_bytes += bytes;
  if (!move.down) {
    slab.give_back(left);
    return;
  }
  exchange_slots[c].push_back(left);
  stats.downloaded_bytes += bytes;
  Entry& down = entry(*move.down);
  devices->vram().retire(down.vram, epoch);
  down = {.slot = exchange.ram_slot, .vram = {}, .state = State::resident};
  policy->on_admit(*move.down);
  policy->on_unpin(*move.down);
}

// True when that has freed an expert in RAM: at once, when its copies have ended; else it will.
bool Scheduler::Impl::give_up_exchange() {
  if (!devices || !devices->give_up()) return false;
  i64 before = devices->under_way();
  settle_exchanges(false);
  return devices->under_way() < before;
}

// Experts whose copies have landed change places.
void Scheduler::Impl::end_epoch() {
  CHECK(!leased);
  poll();
  settle_exchanges(true);
  epoch++;
}

void Scheduler::Impl::move_between_passes(i64 tokens) {
  end_epoch();
  Placement& placement = devices->placement();
  placement.on_pass(tokens);
  candidates.clear();
  if (placement.offers_all())
    for (size_t i = 0; i < entries.size(); i++) offer(key_of(i));
  else
    for (ExpertKey key : placement.used_in_ram()) offer(key);
  limit_moves();
  begin_moves(candidates, most_moves);
}

// While devices have empty slots, a layer gets its share of them: later ones are wanted as much.
void Scheduler::Impl::end_piece_layer(i64 moe_layer, i64 tokens) {
  if (!devices) return;
  end_epoch();
  devices->placement().on_piece_layer(moe_layer, tokens);
  candidates.clear();
  for (ExpertKey key : devices->placement().used_in_ram()) offer(key);
  limit_moves();
  size_t c = static_cast<size_t>(class_of(moe_layer));
  if (has_empty_slots(c)) most_moves[c] = std::min(most_moves[c], share_left(moe_layer));
  begin_moves(candidates, most_moves);
}

void Scheduler::Impl::offer(ExpertKey key) {
  const Entry& e = entry(key);
  if (e.state == State::resident && !e.predicted) candidates.push_back(key);
}

void Scheduler::Impl::limit_moves() {
  for (size_t c = 0; c < most_moves.size(); c++) {
    i64 most = std::min(kMostExchanges, slab.usable_slots(static_cast<i64>(c)) / 4);
    most_moves[c] = std::max<i64>(0, most - devices->under_way(static_cast<i64>(c)));
  }
}

void Scheduler::Impl::begin_moves(std::span<const ExpertKey> offered, std::span<const i64> most) {
  for (size_t c = 0; c < ram_room.size(); c++) ram_room[c] = static_cast<i64>(exchange_slots[c].size());
  for (const Placement::Move& move : devices->choose(*policy, offered, ram_room, most)) {
    policy->on_pin(move.up);
    DeviceTier::RamPlace down;
    VramSlot from;
    if (move.down) {
      std::vector<SlotId>& free = exchange_slots[static_cast<size_t>(class_of(move.up.moe_layer))];
      down = ram_place(*move.down, free.back());
      free.pop_back();
      from = entry(*move.down).vram;
    }
    devices->start(move, ram_place(move.up, entry(move.up).slot), down, from);
  }
}

void Scheduler::Impl::lose_device(i64 device) {
  if (!devices || devices->vram().lost(device)) return;
  log_warning("device {} is lost: its experts are read from disk when they are wanted", device);
  devices->lose(device);
  for (Entry& e : entries)
    if (e.state == State::on_device && e.vram.device == device) e = {};
}

// Experts that all devices together have room for.
i64 Scheduler::Impl::device_room(size_t slot_class) const {
  i64 room = 0;
  for (const DevicePlan& device : plan.devices) room += device.slots[slot_class] - device.exchange_slots[slot_class];
  return room;
}

// Beside those that are kept for exchanges.
bool Scheduler::Impl::has_empty_slots(size_t slot_class) {
  for (size_t d = 0; d < plan.devices.size(); d++) {
    i64 free = devices->vram().free_slots(static_cast<i64>(d), static_cast<i64>(slot_class));
    if (free > plan.devices[d].exchange_slots[slot_class]) return true;
  }
  return false;
}

// Of what the devices have room for, the layer's share, less what is there of it or on the way.
i64 Scheduler::Impl::share_left(i64 moe_layer) {
  size_t c = static_cast<size_t>(class_of(moe_layer));
  const std::vector<i64>& layers = plan.classes[c].moe_layers;
  i64 before = std::find(layers.begin(), layers.end(), moe_layer) - layers.begin();
  i64 all = static_cast<i64>(layers.size());
  i64 share = device_room(c) * (before + 1) / all - device_room(c) * before / all;
  for (i64 e = 0; e < table.experts_per_layer(); e++) {
    ExpertKey key{moe_layer, ExpertId(e)};
    share -= entry(key).state == State::on_device || devices->placement().moving(key);
  }
  return std::max<i64>(0, share);
}

// Of what a preload has read of this layer, its share of what the devices hold goes there, so that RAM has room for more.
void Scheduler::Impl::fill_devices(i64 moe_layer) {
  candidates.clear();
  for (i64 e = 0; e < table.experts_per_layer(); e++)
    if (ExpertKey key{moe_layer, ExpertId(e)}; entry(key).state == State::resident) candidates.push_back(key);
  std::fill(most_moves.begin(), most_moves.end(), 0);
  most_moves[static_cast<size_t>(class_of(moe_layer))] = share_left(moe_layer);
  begin_moves(candidates, most_moves);
}

}  // namespace stoker
