#include "scheduler/planner.h"

#include <algorithm>
#include <array>
#include <map>

#include "kernels/base/error.h"
#include "scheduler/tiers/slice.h"
#include "scheduler/tiers/vram.h"

namespace stoker {

namespace {

f64 gib(i64 bytes) { return static_cast<f64>(bytes) / kGiB; }

// Bytes for the user to type: rounded up, in MiB so that small models are served too.
std::string typed(i64 bytes) { return fmt::format("{}M", div_up(bytes, kMiB)); }

i64 experts_in(const ExpertTable& table, const SlotClass& c) {
  return static_cast<i64>(c.moe_layers.size()) * table.experts_per_layer();
}

i64 least_slots(const ExpertTable& table) { return std::min(table.top_k(), table.experts_per_layer()); }

// Layers whose experts have the same sizes share a class, wherever their slices lie: a slot has room for the
// expert that needs most.
std::vector<SlotClass> slot_classes(const ExpertTable& table, i64 alignment) {
  std::vector<SlotClass> classes;
  std::map<std::array<i64, kExpertMatrices>, size_t> by_bytes;
  for (i64 l = 0; l < table.moe_layers(); l++) {
    const ExpertLayer& layer = table.layers()[static_cast<size_t>(l)];
    std::array<i64, kExpertMatrices> bytes;
    for (size_t m = 0; m < bytes.size(); m++) bytes[m] = layer.base[m].bytes;
    auto [it, fresh] = by_bytes.try_emplace(bytes, classes.size());
    if (fresh) classes.emplace_back();
    SlotClass& c = classes[it->second];
    c.moe_layers.push_back(l);
    c.device_slot_bytes = std::max(c.device_slot_bytes, vram_layout(table, layer.layer).bytes);
    for (i64 e = 0; e < table.experts_per_layer(); e++)
      c.slot_bytes =
          std::max(c.slot_bytes, expert_reads(table, layer.layer, ExpertId(e), alignment).slot_bytes);
  }
  return classes;
}

i64 bytes_of(const std::vector<SlotClass>& classes) {
  i64 bytes = 0;
  for (const SlotClass& c : classes) bytes += c.slots * c.slot_bytes;
  return bytes;
}

// About `per_layer` slots for every layer of every class, within what is useful.
void set_slots(const ExpertTable& table, std::vector<SlotClass>& classes, f64 per_layer, i64 least) {
  for (SlotClass& c : classes) {
    i64 wanted = static_cast<i64>(per_layer * static_cast<f64>(c.moe_layers.size()));
    c.slots = std::clamp(wanted, least, experts_in(table, c));
  }
}

// The most slots per layer that fit, at least `least`; what rounding left over goes, slot by slot, to the class with the
// least.
void fill_budget(const ExpertTable& table, std::vector<SlotClass>& classes, i64 budget, i64 least) {
  f64 fits = 0, exceeds = static_cast<f64>(table.experts_per_layer()) + 1;
  set_slots(table, classes, exceeds, least);
  if (bytes_of(classes) <= budget) return;
  for (int step = 0; step < 60; step++) {
    f64 middle = (fits + exceeds) / 2;
    set_slots(table, classes, middle, least);
    (bytes_of(classes) <= budget ? fits : exceeds) = middle;
  }
  set_slots(table, classes, fits, least);
  i64 left = budget - bytes_of(classes);
  for (;;) {
    SlotClass* poorest = nullptr;
    for (SlotClass& c : classes) {
      if (c.slot_bytes > left || c.slots == experts_in(table, c)) continue;
      auto share = [](const SlotClass& s) {
        return static_cast<f64>(s.slots) / static_cast<f64>(s.moe_layers.size());
      };
      if (poorest == nullptr || share(c) < share(*poorest)) poorest = &c;
    }
    if (poorest == nullptr) return;
    poorest->slots++;
    left -= poorest->slot_bytes;
  }
}

// How many of a device's slots of a class are kept free: as many exchanges can be under way.
i64 exchange_slots(i64 slots) {
  constexpr i64 kMost = 64;
  return slots < 2 ? 0 : std::clamp<i64>(slots / 32, 1, kMost);
}

DevicePlan plan_device(const ExpertTable& table, std::vector<SlotClass> classes, const DeviceRequest& request) {
  for (SlotClass& c : classes) c.slot_bytes = c.device_slot_bytes;
  fill_budget(table, classes, request.vram_bytes, 0);
  DevicePlan plan{.vram_bytes = request.vram_bytes,
                  .slots = {},
                  .exchange_slots = {},
                  .link_gb_per_second = request.link_gb_per_second,
                  .gb_per_second = request.gb_per_second};
  for (const SlotClass& c : classes) {
    plan.slots.push_back(c.slots);
    plan.exchange_slots.push_back(exchange_slots(c.slots));
  }
  return plan;
}

// In RAM for as many as on all devices, as far as that leaves most of it to the cache.
void keep_exchange_slots(const ExpertTable& table, Plan& plan) {
  for (size_t c = 0; c < plan.classes.size(); c++) {
    i64 wanted = 0;
    for (const DevicePlan& device : plan.devices) wanted += device.exchange_slots[c];
    i64 slots = plan.classes[c].slots;
    plan.classes[c].exchange_slots = std::clamp<i64>(slots / 8, 0, std::min(wanted, slots - least_slots(table)));
  }
}

bool holds_all(const ExpertTable& table, const Plan& plan) {
  for (size_t c = 0; c < plan.classes.size(); c++) {
    i64 slots = plan.classes[c].slots - plan.classes[c].exchange_slots;
    for (const DevicePlan& device : plan.devices) slots += device.slots[c] - device.exchange_slots[c];
    if (slots < experts_in(table, plan.classes[c])) return false;
  }
  return true;
}

}  // namespace

i64 plan_alignment(const Reader& reader, const ExpertTable& table) {
  i64 alignment = 4096;
  for (size_t file = 0; file < table.file_bytes().size(); file++)
    alignment = std::max(alignment, reader.alignment(static_cast<i32>(file)));
  return alignment;
}

Plan make_plan(const ExpertTable& table, const PlanRequest& request) {
  if (request.ring_depth < 1)
    fail("the number of reads in flight must be at least 1, not {}", request.ring_depth);
  if (request.piece_bytes < request.alignment || request.piece_bytes % request.alignment != 0)
    fail("reads of {} bytes do not suit this disk: use a multiple of {}", request.piece_bytes,
         request.alignment);
  Plan plan;
  plan.ram_bytes = request.ram_bytes;
  plan.alignment = request.alignment;
  plan.ring_depth = request.ring_depth;
  plan.piece_bytes = request.piece_bytes;
  plan.classes = slot_classes(table, request.alignment);
  plan.class_of_moe_layer.resize(static_cast<size_t>(table.moe_layers()));
  for (size_t c = 0; c < plan.classes.size(); c++) {
    if (plan.classes[c].slot_bytes > kGiB)
      fail("one expert takes {:.2f} GiB, more than the 1 GiB that a slot can have",
           gib(plan.classes[c].slot_bytes));
    for (i64 layer : plan.classes[c].moe_layers)
      plan.class_of_moe_layer[static_cast<size_t>(layer)] = static_cast<i64>(c);
  }
  i64 least = smallest_budget(table, request.alignment);
  if (request.ram_bytes < least)
    fail(
        "{:.2f} GiB of memory for experts is too little: one layer needs {} experts at a time, {:.2f} GiB; "
        "use "
        "--ram {} or more",
        gib(request.ram_bytes), least_slots(table), gib(least), typed(least));
  fill_budget(table, plan.classes, request.ram_bytes, least_slots(table));
  plan.cpu_gb_per_second = request.cpu_gb_per_second;
  for (const DeviceRequest& device : request.devices) plan.devices.push_back(plan_device(table, plan.classes, device));
  keep_exchange_slots(table, plan);
  plan.all_resident = holds_all(table, plan);
  return plan;
}

i64 smallest_budget(const ExpertTable& table, i64 alignment) {
  std::vector<SlotClass> classes = slot_classes(table, alignment);
  set_slots(table, classes, 0, least_slots(table));
  return bytes_of(classes);
}

i64 full_budget(const ExpertTable& table, i64 alignment) {
  std::vector<SlotClass> classes = slot_classes(table, alignment);
  set_slots(table, classes, static_cast<f64>(table.experts_per_layer()), least_slots(table));
  return bytes_of(classes);
}

std::string plan_warning(const ExpertTable& table, const Plan& plan) {
  i64 cycle_slots = 0, cycle_bytes = 0, room = plan.ram_experts();
  for (size_t d = 0; d < plan.devices.size(); d++) room += plan.device_experts(d);
  for (size_t c = 0; c < plan.classes.size(); c++) {
    i64 slots = static_cast<i64>(plan.classes[c].moe_layers.size()) * least_slots(table);
    cycle_slots += slots;
    // What RAM must have beside the devices, and beside what an exchange keeps free.
    i64 in_ram = slots + plan.classes[c].exchange_slots;
    for (const DevicePlan& d : plan.devices) in_ram -= d.slots[c] - d.exchange_slots[c];
    cycle_bytes += std::max<i64>(in_ram, 0) * plan.classes[c].slot_bytes;
  }
  if (room >= cycle_slots) return "";
  return fmt::format(
      "memory for {} experts, but one token uses {}: most of them come from disk for every token. --ram {} would hold one "
      "token's experts",
      room, cycle_slots, typed(cycle_bytes));
}

i64 memory_margin(const Machine& machine) {
  return std::clamp(machine.total_ram_bytes / 16, 512 * kMiB, 8 * kGiB);
}

i64 default_expert_budget(const Machine& machine, i64 resident_bytes, i64 kv_bytes) {
  return std::max<i64>(0, machine.available_bytes - resident_bytes - kv_bytes - memory_margin(machine));
}

}  // namespace stoker
