// Preload: every expert that has a slot is read once, in file order, and devices are filled layer by layer on the way.
#include "scheduler/scheduler_impl.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/log.h"

namespace stoker {

namespace {

constexpr i64 kPreloadTransfers = 32;  // experts under way at a time: enough to keep every queue full
// Under way beside other work: a few milliseconds of a drive.
constexpr i64 kWarmBytes = 16 * kMiB;

}  // namespace

std::vector<i64> Scheduler::Impl::layers_in_file_order() const {
  std::vector<i64> order(static_cast<size_t>(table.moe_layers()));
  for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<i64>(i);
  auto place = [&](i64 moe_layer) {
    const Extent& gate = table.layers()[static_cast<size_t>(moe_layer)].base[0];
    return std::pair(gate.file, gate.offset);
  };
  std::stable_sort(order.begin(), order.end(), [&](i64 a, i64 b) { return place(a) < place(b); });
  return order;
}

i64 Scheduler::Impl::preload_bytes() const {
  i64 bytes = 0;
  for (size_t i = 0; i < plan.classes.size(); i++) {
    const SlotClass& c = plan.classes[i];
    i64 slots = c.slots;
    if (devices) slots += device_room(i) - c.exchange_slots;
    i64 experts = std::min(slots, static_cast<i64>(c.moe_layers.size()) * table.experts_per_layer());
    if (experts > 0) bytes += experts * table.expert_bytes(layer_of(c.moe_layers[0]));
  }
  return bytes;
}

// Invalid when the class has no more to come.
SlotId Scheduler::Impl::wait_for_free_slot(i64 slot_class) {
  for (;;) {
    bool growing = slab.growing();
    collect_memory();
    if (devices) settle_exchanges(true);
    SlotId slot = slab.take(slot_class);
    bool leaving = devices && devices->under_way() > 0;
    if (slot.valid() || (!growing && !leaving)) return slot;
    poll();
    if (growing)
      slab.wait_growth(kWaitSliceNs);
    else
      devices->wait(kWaitSliceNs);
  }
}

Status Scheduler::preload(bool (*progress)(i64 done, i64 total, void* context), void* context) {
  Impl& s = *impl_;
  CHECK(!s.leased);
  s.other_failure = {};
  i64 total = s.preload_bytes();
  i64 started = 0;
  auto settle = [&](i64 most_under_way) {
    s.poll();
    // After a failure all that is under way is waited for, so that every slot is accounted for.
    while (s.streamer.under_way() > (s.other_failure.ok() ? most_under_way : 0)) {
      s.streamer.wait(Impl::kWaitSliceNs);
      s.poll();
    }
    return s.other_failure.ok() && (progress == nullptr || progress(started, total, context));
  };
  for (i64 moe_layer : s.layers_in_file_order()) {
    for (i64 e = 0; e < s.table.experts_per_layer(); e++) {
      ExpertKey key{moe_layer, ExpertId(e)};
      if (s.entry(key).state != Impl::State::absent) continue;
      SlotId slot = s.wait_for_free_slot(s.class_of(moe_layer));
      if (!slot.valid() && s.devices) {
        if (!settle(0)) return s.other_failure;
        s.fill_devices(moe_layer);
        slot = s.wait_for_free_slot(s.class_of(moe_layer));
      }
      if (!slot.valid()) break;
      s.start_read(key, slot, ReadPriority::background);
      if (!settle(kPreloadTransfers)) return s.other_failure;
      started += s.table.expert_bytes(s.layer_of(moe_layer));
    }
    if (!s.devices) continue;
    if (!settle(0)) return s.other_failure;
    s.fill_devices(moe_layer);
  }
  settle(0);
  while (s.devices && s.devices->under_way() > 0) {
    s.poll();
    s.settle_exchanges(true);
    if (s.devices->under_way() > 0) s.devices->wait(Impl::kWaitSliceNs);
  }
  return s.other_failure;
}

// Devices get their share of the layers that are in RAM by now. Places change here as between two passes: no lease exists,
// and what a pass reads of a layer is what its lease says.
void Scheduler::Impl::warm_devices() {
  settle_exchanges(true);
  i64 experts = table.experts_per_layer();
  for (; warm_filled < warmed / experts; warm_filled++) {
    i64 layer = warm_order[static_cast<size_t>(warm_filled)];
    auto first = entries.begin() + static_cast<std::ptrdiff_t>(index_of({layer, ExpertId(0)}));
    if (std::any_of(first, first + experts, [](const Entry& e) { return e.state == State::in_flight; })) return;
    fill_devices(layer);
  }
}

// Experts of a layer that are read before somebody asks for them: where they do not all fit, layers share the slots.
i64 Scheduler::Impl::warm_share(i64 moe_layer) const {
  if (plan.all_resident) return table.experts_per_layer();
  const SlotClass& c = plan.classes[static_cast<size_t>(class_of(moe_layer))];
  return std::min((c.slots - c.exchange_slots) / static_cast<i64>(c.moe_layers.size()), table.experts_per_layer());
}

// How many experts of the layer from this rank on are dealt with: 0 when it has to wait for memory, or for experts that
// leave it for a device; the rest of the layer when there is no place for them.
i64 Scheduler::Impl::warm_next(i64 moe_layer, i64 rank) {
  i64 rest = table.experts_per_layer() - rank;
  if (rank == 0) rank_layer(moe_layer);
  if (rank >= warm_share(moe_layer)) return rest;
  ExpertKey key = ranked_expert(moe_layer, rank);
  if (entry(key).state != State::absent) return 1;
  SlotId slot = slab.take(class_of(moe_layer));
  if (slot.valid()) {
    policy->on_fill(key);
    start_admitted(key, slot, ReadPriority::background);
    return 1;
  }
  if (slab.growing()) return 0;
  if (devices) {
    if (streamer.under_way() > 0) return 0;
    if (devices->under_way() == 0) fill_devices(moe_layer);
    if (devices->under_way() > 0) return 0;
  }
  return rest;
}

Scheduler::Warmth Scheduler::warm() {
  Impl& s = *impl_;
  CHECK(!s.leased);
  i64 experts = s.table.experts_per_layer(), total = static_cast<i64>(s.entries.size());
  if (s.warmed < total || (s.devices && s.warm_filled < s.table.moe_layers())) {
    if (s.warm_order.empty()) s.warm_order = s.layers_in_file_order();
    s.poll();
    if (s.devices) s.warm_devices();
    i64 bytes = s.table.expert_bytes(s.layer_of(0));
    i64 most = std::clamp<i64>(kWarmBytes / bytes, 2, kPreloadTransfers);
    for (i64 more = 1; more > 0 && s.warmed < total && s.streamer.under_way() < most; s.warmed += more)
      more = s.warm_next(s.warm_order[static_cast<size_t>(s.warmed / experts)], s.warmed % experts);
    s.streamer.pump();
    if (!s.other_failure.ok()) log_warning("{}", std::exchange(s.other_failure, {}).message());
  }
  // The last layer's experts are on their way to devices only when they are in RAM.
  bool all = !s.devices || s.warm_filled == s.table.moe_layers();
  return {all ? s.warmed : std::min(s.warmed, total - 1), total};
}

}  // namespace stoker
