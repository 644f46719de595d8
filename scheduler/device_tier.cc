#include "scheduler/device_tier.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/error.h"

namespace stoker {

namespace {

constexpr size_t kBatch = 64;

u64 make_tag(u64 exchange, CopyDirection direction) { return exchange << 1 | static_cast<u64>(direction); }

}  // namespace

DeviceTier::DeviceTier(const ExpertTable& table, const Plan& plan, Copier& copier)
    : table_(table),
      plan_(plan),
      copier_(copier),
      vram_(plan),
      placement_(plan, table.experts_per_layer()),
      device_slots_(plan.devices.size() * plan.classes.size()),
      results_(kBatch) {
  if (copier.devices() < vram_.devices())
    fail("the plan has experts on {} devices, there are {}", vram_.devices(), copier.devices());
  for (i64 d = 0; d < vram_.devices(); d++) {
    i64 needed = plan.device_arena_bytes(static_cast<size_t>(d));
    if (copier.arena_bytes(d) < needed)
      fail("device {} has {} bytes of memory for experts, the plan needs {}", d, copier.arena_bytes(d), needed);
  }
  for (const ExpertLayer& layer : table.layers()) layouts_.push_back(vram_layout(table, layer.layer));
  size_t most = static_cast<size_t>(table.moe_layers() * table.experts_per_layer());
  moves_.reserve(most);
  exchanges_.reserve(most);
  waiting_.reserve(2 * most);
  found_lost_.reserve(static_cast<size_t>(vram_.devices()));
}

std::span<const Placement::Move> DeviceTier::choose(const ResidencyPolicy& policy, std::span<const ExpertKey> candidates,
                                                    std::span<const i64> ram_slots, std::span<const i64> most_moves) {
  size_t classes = plan_.classes.size();
  for (size_t i = 0; i < device_slots_.size(); i++)
    device_slots_[i] = vram_.free_slots(static_cast<i64>(i / classes), static_cast<i64>(i % classes));
  placement_.choose(policy, candidates, {device_slots_, ram_slots, most_moves}, moves_);
  return moves_;
}

void DeviceTier::start(const Placement::Move& move, const RamPlace& up, const RamPlace& down, VramSlot down_from) {
  i64 slot_class = plan_.class_of_moe_layer[static_cast<size_t>(move.up.moe_layer)];
  Exchange exchange{.move = move, .to = vram_.take(move.device, slot_class), .ram_slot = down.slot};
  CHECK(exchange.to.valid());
  u64 id = next_id_++;
  waiting_.push_back(make_copy(make_tag(id, CopyDirection::upload), CopyDirection::upload, move.up, exchange.to, up));
  exchange.copies_left = 1;
  if (move.down) {
    CHECK(down.slot.valid() && down_from.device == move.device && down_from.slot_class == slot_class);
    waiting_.push_back(
        make_copy(make_tag(id, CopyDirection::download), CopyDirection::download, *move.down, down_from, down));
    exchange.copies_left = 2;
  }
  exchanges_.push_back({exchange, id});
  hand_out();
}

Copy DeviceTier::make_copy(u64 tag, CopyDirection direction, ExpertKey key, VramSlot slot, const RamPlace& ram) const {
  const ExpertLayer& layer = table_.layers()[static_cast<size_t>(key.moe_layer)];
  Copy copy{.tag = tag, .device = slot.device, .direction = direction, .layer = layer.layer, .expert = key.expert, .parts = {}};
  std::array<i64, 3> at = expert_at(slot, key.moe_layer).at_device;
  for (size_t m = 0; m < at.size(); m++) copy.parts[m] = {ram.matrices[m], at[m], layer.base[m].bytes};
  return copy;
}

DeviceExpert DeviceTier::expert_at(VramSlot slot, i64 moe_layer) const {
  DeviceExpert expert{.request = 0, .device = slot.device, .at_device = layouts_[static_cast<size_t>(moe_layer)].at_slot};
  for (i64& at : expert.at_device) at += vram_.offset(slot);
  return expert;
}

void DeviceTier::poll() {
  while (submitted_ > 0) {
    i64 n = copier_.poll(results_);
    if (n == 0) break;
    submitted_ -= n;
    for (const CopyDone& done : std::span(results_).first(static_cast<size_t>(n))) {
      Flight* flight = find(done.tag >> 1);
      CHECK(flight != nullptr);
      flight->exchange.copies_left--;
      flight->exchange.failed |= done.error != CopyError::none;
      i64 device = flight->exchange.move.device;
      bool news = done.error == CopyError::device_lost && !vram_.lost(device);
      if (news && std::find(found_lost_.begin(), found_lost_.end(), device) == found_lost_.end())
        found_lost_.push_back(device);
    }
  }
  hand_out();
}

void DeviceTier::hand_out() {
  size_t room = static_cast<size_t>(std::max<i64>(0, copier_.capacity() - submitted_));
  size_t n = std::min(room, waiting_.size() - waiting_head_);
  if (n == 0) return;
  i64 taken = copier_.submit(std::span(waiting_).subspan(waiting_head_, n));
  CHECK(taken == static_cast<i64>(n));  // we stay below its capacity
  submitted_ += taken;
  waiting_head_ += n;
  if (waiting_head_ == waiting_.size()) {
    waiting_.clear();
    waiting_head_ = 0;
  }
}

bool DeviceTier::next(bool border, Exchange& ended) {
  for (size_t i = 0; i < exchanges_.size(); i++) {
    const Exchange& exchange = exchanges_[i].exchange;
    if (exchange.copies_left > 0 || (exchange.good() && !border)) continue;
    ended = exchange;
    exchanges_.erase(exchanges_.begin() + static_cast<std::ptrdiff_t>(i));
    return true;
  }
  return false;
}

bool DeviceTier::give_up() {
  Exchange* latest = nullptr;
  for (Flight& f : exchanges_)
    if (f.exchange.good() && (latest == nullptr || latest->copies_left > 0 || f.exchange.copies_left == 0))
      latest = &f.exchange;
  if (latest != nullptr) latest->given_up = true;
  return latest != nullptr;
}

i64 DeviceTier::under_way(i64 slot_class) const {
  return std::count_if(exchanges_.begin(), exchanges_.end(),
                       [&](const Flight& f) { return f.exchange.to.slot_class == slot_class; });
}

i64 DeviceTier::next_lost() {
  if (found_lost_.empty()) return -1;
  i64 device = found_lost_.back();
  found_lost_.pop_back();
  return device;
}

void DeviceTier::lose(i64 device) {
  vram_.lose(device);
  placement_.on_lost(device);
  for (Flight& f : exchanges_) f.exchange.failed |= f.exchange.move.device == device;
}

DeviceTier::Flight* DeviceTier::find(u64 id) {
  auto it = std::lower_bound(exchanges_.begin(), exchanges_.end(), id, [](const Flight& f, u64 i) { return f.id < i; });
  return it != exchanges_.end() && it->id == id ? &*it : nullptr;
}

}  // namespace stoker
