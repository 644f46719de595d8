// Plan: pure data. How many bytes and slots the RAM tier has, made by the planner and followed by everyone.
#pragma once

#include <vector>

#include "kernels/base/types.h"

namespace stoker {

// Experts whose three matrices have the same sizes share slots. What lies where in a slot is up to the expert
// (tiers/slice.h).
struct SlotClass {
  i64 slot_bytes = 0;  // room for any of its experts, alignment slack included
  i64 slots = 0;
  std::vector<i64> moe_layers;  // indices into ExpertTable::layers() that use this class
};

struct Plan {
  i64 ram_bytes = 0;  // budget for experts, as asked for or found
  std::vector<SlotClass> classes;
  std::vector<i64> class_of_moe_layer;  // [moe layers] -> index into classes
  i64 alignment = 4096;       // of slots and reads; a multiple of what every file needs
  i64 ring_depth = 64;        // reads in flight
  i64 piece_bytes = 1 << 20;  // of one read; a multiple of alignment
  bool all_resident = false;  // every expert has a slot

  i64 total_slots() const {
    i64 n = 0;
    for (const SlotClass& c : classes) n += c.slots;
    return n;
  }
  i64 arena_bytes() const {
    i64 n = 0;
    for (const SlotClass& c : classes) n += c.slots * c.slot_bytes;
    return n;
  }
};

}  // namespace stoker
