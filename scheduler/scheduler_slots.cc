// Slots and the reads into them: memory that has grown, a slot for an expert, what a landed read means for its entry.
#include "scheduler/scheduler_impl.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"

namespace stoker {

void Scheduler::Impl::collect_memory() {
  if (!slab.collect()) return;
  for (size_t c = 0; c < plan.classes.size(); c++) {
    if (devices) keep_exchange_slots(c);
    policy->on_capacity(static_cast<i64>(c), slab.usable_slots(static_cast<i64>(c)) - kept_slots[c]);
  }
}

SlotId Scheduler::Impl::find_slot(i64 moe_layer) {
  SlotId slot = slab.take(class_of(moe_layer));
  if (slot.valid()) return slot;
  std::optional<ExpertKey> victim = policy->choose_victim(moe_layer);
  if (!victim) return {};
  CHECK(entry(*victim).state == State::resident);
  stats.evictions++;
  evict(*victim);
  return slab.take(class_of(moe_layer));
}

void Scheduler::Impl::start_read(ExpertKey key, SlotId slot, ReadPriority priority) {
  policy->on_admit(key);
  start_admitted(key, slot, priority);
}

void Scheduler::Impl::start_admitted(ExpertKey key, SlotId slot, ReadPriority priority) {
  Entry& e = entry(key);
  e.slot = slot;
  e.state = State::in_flight;
  fetch(key, slot, priority);
}

void Scheduler::Impl::fetch(ExpertKey key, SlotId slot, ReadPriority priority) {
  streamer.start({.layer = layer_of(key.moe_layer),
                  .expert = key.expert,
                  .slot = slot,
                  .to = slab.data(slot),
                  .priority = priority});
}

void Scheduler::Impl::evict(ExpertKey key) {
  Entry& e = entry(key);
  policy->on_evict(key);
  slab.give_back(e.slot);
  e = {};
}

void Scheduler::Impl::land(const FetchDone& done) {
  ExpertKey key{table.moe_index(done.layer), done.expert};
  Entry& e = entry(key);
  if (e.predicted) {
    std::erase(predicted, key);
    i64 bytes = done.status.ok() ? table.expert_bytes(done.layer) : done.bytes_read;
    (e.ahead ? stats.ahead_bytes : stats.predicted_bytes) += bytes;
  }
  bool filled_it = e.fills;
  if (filled_it) land_fill(done, key);
  if (std::exchange(e.retry, false) && !done.status.ok() && e.want >= 0) {
    fetch(key, e.slot, ReadPriority::demand);
    return;
  }
  i32 want = std::exchange(e.want, -1);
  policy->on_unpin(key);
  if (done.status.ok()) {
    e.state = State::resident;
    if (want < 0) return;
    wants[static_cast<size_t>(want)].phase = Phase::ready;
    landed.push_back(want);
    return;
  }
  if (want >= 0) {
    policy->on_unpin(key);
    wants[static_cast<size_t>(want)].phase = Phase::released;
    if (lease_failure.ok()) lease_failure = done.status;
  } else if (other_failure.ok() && !e.predicted && !filled_it) {
    other_failure = done.status;
  }
  evict(key);
}

// Takes in what has happened since the last call: memory, landed reads.
void Scheduler::Impl::poll() {
  collect_memory();
  streamer.pump();
  FetchDone done;
  while (streamer.next(done)) land(done);
  if (devices) poll_devices();
}

// Until no read and no copy is under way.
void Scheduler::Impl::drain() {
  CHECK(!leased);
  while (streamer.under_way() > 0) {
    poll();
    if (streamer.under_way() > 0) streamer.wait(kWaitSliceNs);
  }
  while (devices && devices->under_way() > 0) {
    devices->poll();
    settle_exchanges(true);
    if (devices->under_way() > 0) devices->wait(kWaitSliceNs);
  }
}

i64 Scheduler::Impl::give_up_memory(i64 bytes) {
  slab.stop_growing();
  drain();
  collect_memory();
  std::vector<i64> holders(static_cast<size_t>(slab.planned_slots()), -1);  // entries
  for (size_t i = 0; i < entries.size(); i++)
    if (entries[i].slot.valid()) holders[static_cast<size_t>(entries[i].slot.value)] = static_cast<i64>(i);
  i64 given = 0;
  while (given < bytes) {
    const Slab::Range range = slab.last_piece();
    if (range.count == 0) break;
    for (i64 i = 0; i < range.count; i++) {
      SlotId slot(range.first.value + i);
      vacate(slot, holders[static_cast<size_t>(slot.value)]);
    }
    given += slab.drop_last_piece();
  }
  for (size_t c = 0; c < plan.classes.size(); c++) lower_capacity(c);
  return given;
}

// Nothing is under way: a slot is free, kept free for exchanges, or has an expert that is not pinned.
void Scheduler::Impl::vacate(SlotId slot, i64 holder) {
  if (holder >= 0) {
    stats.evictions++;
    evict(key_of(static_cast<size_t>(holder)));
  }
  size_t c = static_cast<size_t>(slab.slot_class(slot));
  if (std::erase(exchange_slots[c], slot) == 0) return;
  kept_slots[c]--;
  slab.give_back(slot);
}

// No more is kept for exchanges than of so many slots would have been.
void Scheduler::Impl::lower_capacity(size_t c) {
  while (kept_slots[c] > most_kept(c)) {
    slab.give_back(exchange_slots[c].back());
    exchange_slots[c].pop_back();
    kept_slots[c]--;
  }
  policy->on_capacity(static_cast<i64>(c), slab.usable_slots(static_cast<i64>(c)) - kept_slots[c]);
}

// Every slot is free, or an expert's. To be asked when nothing is under way.
void Scheduler::Impl::check_slots() {
  for (size_t c = 0; c < plan.classes.size(); c++) {
    i64 slot_class = static_cast<i64>(c);
    auto of_class = [&](SlotId slot) { return slot.valid() && slab.slot_class(slot) == slot_class; };
    i64 used = std::count_if(entries.begin(), entries.end(), [&](const Entry& e) { return of_class(e.slot); });
    CHECK(used + slab.free_slots(slot_class) + static_cast<i64>(exchange_slots[c].size()) == slab.usable_slots(slot_class));
    for (i64 d = 0; devices && d < devices->vram().devices(); d++) {
      const Vram& vram = devices->vram();
      if (vram.lost(d)) continue;
      auto there = [&](const Entry& e) { return e.vram.device == d && e.vram.slot_class == slot_class; };
      i64 on_device = std::count_if(entries.begin(), entries.end(), there);
      CHECK(on_device + vram.free_slots(d, slot_class) + vram.retired_slots(d, slot_class) ==
            plan.devices[static_cast<size_t>(d)].slots[c]);
    }
  }
}

void Scheduler::Impl::block() {
  i64 begin = clock.now_ns();
  if (streamer.under_way() > 0)
    streamer.wait(kWaitSliceNs);
  else if (slab.growing())
    slab.wait_growth(kWaitSliceNs);
  else if (devices && devices->under_way() > 0)
    devices->wait(kWaitSliceNs);
  else
    CHECK(!"a lease waits for a slot although nothing is pinned");  // the policy broke its promise
  stats.wait_ns += clock.now_ns() - begin;
}

}  // namespace stoker
