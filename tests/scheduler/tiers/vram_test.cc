#include "scheduler/tiers/vram.h"

#include <doctest/doctest.h>

#include <set>

#include "scheduler/model_file/expert_table.h"

using namespace stoker;

namespace {

Plan small_plan() {
  Plan plan;
  plan.classes = {{.device_slot_bytes = 512}, {.device_slot_bytes = 1024}};
  plan.devices = {{.slots = {3, 2}}, {.slots = {0, 4}}};
  return plan;
}

}  // namespace

TEST_CASE("slots do not overlap and lie within the arena") {
  Plan plan = small_plan();
  Vram vram(plan);
  for (i64 d = 0; d < 2; d++) {
    std::set<i64> taken;
    for (i64 c = 0; c < 2; c++) {
      i64 bytes = plan.classes[static_cast<size_t>(c)].device_slot_bytes;
      while (vram.free_slots(d, c) > 0) {
        i64 at = vram.offset(vram.take(d, c));
        CHECK(at + bytes <= plan.device_arena_bytes(static_cast<size_t>(d)));
        for (i64 b = at; b < at + bytes; b += kVramAlignment) CHECK(taken.insert(b).second);
      }
      CHECK(!vram.take(d, c).valid());
    }
  }
}

TEST_CASE("a retired slot is free once its epoch has ended on its device") {
  Vram vram(small_plan());
  VramSlot a = vram.take(0, 1), b = vram.take(0, 1);
  vram.retire(a, 5);
  vram.retire(b, 7);
  vram.finish(1, 9);
  CHECK(vram.free_slots(0, 1) == 0);
  vram.finish(0, 4);
  CHECK(vram.free_slots(0, 1) == 0);
  vram.finish(0, 6);
  CHECK(vram.free_slots(0, 1) == 1);
  CHECK(vram.take(0, 1) == a);
  vram.retire(a, 6);  // has ended already
  CHECK(vram.free_slots(0, 1) == 1);
  vram.finish(0, 7);
  CHECK(vram.free_slots(0, 1) == 2);
}

TEST_CASE("a lost device has no slots") {
  Vram vram(small_plan());
  VramSlot a = vram.take(1, 1);
  vram.lose(1);
  CHECK(vram.free_slots(1, 1) == 0);
  vram.retire(a, 3);
  vram.finish(1, 3);
  CHECK(!vram.take(1, 1).valid());
  CHECK(vram.take(0, 0).valid());
}

TEST_CASE("matrices are aligned and follow each other") {
  ExpertLayer layer{.layer = LayerId(0), .base = {Extent{.bytes = 300}, Extent{.bytes = 256}, Extent{.bytes = 1}}};
  VramLayout layout = vram_layout(ExpertTable({layer}, 1, 1, {1000}), LayerId(0));
  CHECK(layout.at_slot[0] == 0);
  CHECK(layout.at_slot[1] == 512);
  CHECK(layout.at_slot[2] == 768);
  CHECK(layout.bytes == 1024);
}
