// Plan: pure data. How many bytes and slots each tier has, made by the planner and followed by everyone.
#pragma once

#include <vector>

#include "kernels/base/types.h"

namespace stoker {

// Experts whose three matrices have the same sizes share slots. What lies where in a slot is up to the expert
// (tiers/slice.h).
struct SlotClass {
  i64 slot_bytes = 0;  // room for any of its experts, alignment slack included
  i64 slots = 0;
  std::vector<i64> moe_layers = {};  // indices into ExpertTable::layers() that use this class
  i64 device_slot_bytes = 0;  // the same in a device's memory, where matrices are aligned otherwise
  // Of `slots`: kept free of what the cache holds, so that an expert can come back from a device before the one that
  // takes its place there has left.
  i64 exchange_slots = 0;
};

// A device's memory for experts. Slots are cut from one arena, class after class.
struct DevicePlan {
  i64 vram_bytes = 0;                    // for experts, as asked for or found
  std::vector<i64> slots = {};           // [classes]
  std::vector<i64> exchange_slots = {};  // [classes], of these: kept free likewise
  f64 link_gb_per_second = 10;           // to RAM, one direction: shares what is moved between unequal devices
  f64 gb_per_second = 100;               // of experts, computing: likewise the work
};

struct Plan {
  i64 ram_bytes = 0;  // budget for experts, as asked for or found
  std::vector<SlotClass> classes = {};
  std::vector<i64> class_of_moe_layer = {};  // [moe layers] -> index into classes
  i64 alignment = 4096;       // of slots and reads; a multiple of what every file needs
  i64 ring_depth = 64;        // reads in flight
  i64 piece_bytes = 1 << 20;  // of one read; a multiple of alignment
  bool all_resident = false;  // every expert has a slot, in RAM or on a device
  std::vector<DevicePlan> devices = {};
  f64 cpu_gb_per_second = 20;  // of experts, computing, when there are devices to compare with

  i64 total_slots() const {
    i64 n = 0;
    for (const SlotClass& c : classes) n += c.slots;
    return n;
  }
  // Experts that fit in RAM beside an exchange, and on this device.
  i64 ram_experts() const {
    i64 n = 0;
    for (const SlotClass& c : classes) n += c.slots - c.exchange_slots;
    return n;
  }
  i64 device_experts(size_t device) const {
    const DevicePlan& d = devices[device];
    i64 n = 0;
    for (size_t c = 0; c < classes.size(); c++) n += d.slots[c] - d.exchange_slots[c];
    return n;
  }
  i64 device_arena_bytes(size_t device) const {
    i64 n = 0;
    for (size_t c = 0; c < classes.size(); c++) n += devices[device].slots[c] * classes[c].device_slot_bytes;
    return n;
  }
  i64 arena_bytes() const {
    i64 n = 0;
    for (const SlotClass& c : classes) n += c.slots * c.slot_bytes;
    return n;
  }
};

}  // namespace stoker
