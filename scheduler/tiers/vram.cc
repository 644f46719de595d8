#include "scheduler/tiers/vram.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "scheduler/model_file/expert_table.h"

namespace stoker {

VramLayout vram_layout(const ExpertTable& table, LayerId layer) {
  const ExpertLayer& l = table.layer(layer);
  VramLayout layout;
  for (size_t m = 0; m < layout.at_slot.size(); m++) {
    layout.at_slot[m] = layout.bytes;
    layout.bytes += round_up(std::max(l.base[m].bytes, l.device_bytes[m]), kVramAlignment);
  }
  return layout;
}

Vram::Vram(const Plan& plan) : devices_(plan.devices.size()) {
  for (const SlotClass& c : plan.classes) slot_bytes_.push_back(c.device_slot_bytes);
  for (size_t d = 0; d < devices_.size(); d++) {
    i64 at = 0;
    for (size_t c = 0; c < slot_bytes_.size(); c++) {
      i64 slots = plan.devices[d].slots[c];
      std::vector<i32>& free = devices_[d].free.emplace_back();
      for (i64 i = slots; i > 0; i--) free.push_back(static_cast<i32>(i - 1));  // the lowest is taken first
      devices_[d].base.push_back(at);
      at += slots * slot_bytes_[c];
    }

  }
}

VramSlot Vram::take(i64 index, i64 slot_class) {
  std::vector<i32>& free = device(index).free[static_cast<size_t>(slot_class)];
  if (device(index).lost || free.empty()) return {};
  VramSlot slot{static_cast<i32>(index), static_cast<i32>(slot_class), free.back()};
  free.pop_back();
  return slot;
}

void Vram::give_back(VramSlot slot) {
  CHECK(slot.valid());
  device(slot.device).free[static_cast<size_t>(slot.slot_class)].push_back(slot.index);
}

void Vram::retire(VramSlot slot, i64 epoch) {
  CHECK(slot.valid());
  if (epoch <= device(slot.device).finished)
    give_back(slot);
  else
    device(slot.device).retired.push_back({slot, epoch});
}

void Vram::finish(i64 index, i64 epoch) {
  Device& d = device(index);
  CHECK(epoch >= d.finished);
  d.finished = epoch;
  std::erase_if(d.retired, [&](const Retired& r) {
    if (r.epoch > epoch) return false;
    give_back(r.slot);
    return true;
  });
}

void Vram::lose(i64 index) {
  device(index).lost = true;
  device(index).retired.clear();
}

i64 Vram::free_slots(i64 index, i64 slot_class) const {
  const Device& d = devices_[static_cast<size_t>(index)];
  return d.lost ? 0 : static_cast<i64>(d.free[static_cast<size_t>(slot_class)].size());
}

i64 Vram::retired_slots(i64 index, i64 slot_class) const {
  const std::vector<Retired>& retired = devices_[static_cast<size_t>(index)].retired;
  return std::count_if(retired.begin(), retired.end(), [&](const Retired& r) { return r.slot.slot_class == slot_class; });
}

i64 Vram::offset(VramSlot slot) const {
  size_t c = static_cast<size_t>(slot.slot_class);
  return devices_[static_cast<size_t>(slot.device)].base[c] + slot.index * slot_bytes_[c];
}

}  // namespace stoker
