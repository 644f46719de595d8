#include "scheduler/planner.h"

#include <algorithm>
#include <array>
#include <map>

#include "kernels/base/error.h"
#include "scheduler/tiers/slice.h"

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
void set_slots(const ExpertTable& table, std::vector<SlotClass>& classes, f64 per_layer) {
  for (SlotClass& c : classes) {
    i64 wanted = static_cast<i64>(per_layer * static_cast<f64>(c.moe_layers.size()));
    c.slots = std::clamp(wanted, least_slots(table), experts_in(table, c));
  }
}

// The most slots per layer that fit; what rounding left over goes, slot by slot, to the class with the least.
void fill_budget(const ExpertTable& table, std::vector<SlotClass>& classes, i64 budget) {
  f64 fits = 0, exceeds = static_cast<f64>(table.experts_per_layer()) + 1;
  set_slots(table, classes, exceeds);
  if (bytes_of(classes) <= budget) return;
  for (int step = 0; step < 60; step++) {
    f64 middle = (fits + exceeds) / 2;
    set_slots(table, classes, middle);
    (bytes_of(classes) <= budget ? fits : exceeds) = middle;
  }
  set_slots(table, classes, fits);
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
  fill_budget(table, plan.classes, request.ram_bytes);
  plan.all_resident = plan.total_slots() == table.moe_layers() * table.experts_per_layer();
  return plan;
}

i64 smallest_budget(const ExpertTable& table, i64 alignment) {
  std::vector<SlotClass> classes = slot_classes(table, alignment);
  set_slots(table, classes, 0);
  return bytes_of(classes);
}

i64 full_budget(const ExpertTable& table, i64 alignment) {
  std::vector<SlotClass> classes = slot_classes(table, alignment);
  set_slots(table, classes, static_cast<f64>(table.experts_per_layer()));
  return bytes_of(classes);
}

std::string plan_warning(const ExpertTable& table, const Plan& plan) {
  i64 cycle_slots = 0, cycle_bytes = 0;
  for (const SlotClass& c : plan.classes) {
    i64 slots = static_cast<i64>(c.moe_layers.size()) * least_slots(table);
    cycle_slots += slots;
    cycle_bytes += slots * c.slot_bytes;
  }
  if (plan.total_slots() >= cycle_slots) return "";
  return fmt::format(
      "memory for {} experts, but one token uses {}: most of them come from disk for every token. --ram {} "
      "({:.1f} "
      "GiB) holds one token's experts",
      plan.total_slots(), cycle_slots, typed(cycle_bytes), gib(cycle_bytes));
}

i64 memory_margin(const Machine& machine) {
  return std::clamp(machine.total_ram_bytes / 16, 512 * kMiB, 8 * kGiB);
}

i64 default_expert_budget(const Machine& machine, i64 resident_bytes, i64 kv_bytes) {
  return std::max<i64>(0, machine.available_bytes - resident_bytes - kv_bytes - memory_margin(machine));
}

}  // namespace stoker
