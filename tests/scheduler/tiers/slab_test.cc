#include "scheduler/tiers/slab.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <set>

#include "kernels/base/buffer.h"
#include "kernels/base/error.h"
#include "kernels/base/log.h"

using namespace stoker;

namespace {

int warnings = 0;
void count_warnings(LogLevel level, std::string_view) { warnings += level == LogLevel::warning; }

Plan two_classes() {
  Plan plan;
  plan.classes.resize(2);
  plan.classes[0].slot_bytes = 3 * 4096;
  plan.classes[0].slots = 100;
  plan.classes[1].slot_bytes = 5 * 4096;
  plan.classes[1].slots = 7;
  return plan;
}

using Pieces = std::map<std::byte*, i64>;  // address -> bytes

i64 usable(const Slab& slab) { return slab.usable_slots(0) + slab.usable_slots(1); }

}  // namespace

TEST_CASE("slots of both classes are apart, aligned, and none crosses the border of a piece") {
  for (i64 piece_bytes : {4096, 40 * 4096, 1 << 30}) {
    Plan plan = two_classes();
    Pieces pieces;
    SlabOptions options{.minimum_slots = 4, .piece_bytes = piece_bytes, .background = false};
    options.on_piece = [&](std::byte* data, i64 bytes) { pieces[data] = bytes; };
    options.on_piece_gone = [&](std::byte* data, i64 bytes) {
      CHECK(pieces.at(data) == bytes);
      pieces.erase(data);
    };
    {
      Slab slab(plan, options);
      CHECK(slab.collect());
      CHECK(!slab.collect());
      CHECK(!slab.growing());
      CHECK(slab.planned_slots() == 107);
      Pieces seen;
      std::set<i32> ids;
      for (i64 c : {0, 1}) {
        i64 bytes = plan.classes[static_cast<size_t>(c)].slot_bytes;
        CHECK(slab.usable_slots(c) == plan.classes[static_cast<size_t>(c)].slots);
        for (i64 i = 0; i < slab.usable_slots(c); i++) {
          SlotId slot = slab.take(c);
          REQUIRE(slot.valid());
          CHECK(slab.slot_class(slot) == c);
          CHECK(ids.insert(slot.value).second);
          std::byte* data = slab.data(slot);
          CHECK(reinterpret_cast<u64>(data) % 4096 == 0);
          seen[data] = bytes;
          auto piece = std::prev(pieces.upper_bound(data));
          CHECK(data + bytes <= piece->first + piece->second);
          CHECK(piece->second <= std::max(piece_bytes, bytes));
        }
        CHECK(!slab.take(c).valid());
      }
      std::byte* end = nullptr;
      for (auto [data, bytes] : seen) {
        CHECK(data >= end);
        end = data + bytes;
      }
      slab.give_back(SlotId(103));
      CHECK(!slab.take(0).valid());
      CHECK(slab.take(1) == SlotId(103));
    }
    CHECK(pieces.empty());
  }
}

TEST_CASE("the minimum exists at once, the rest comes in the background") {
  std::mutex hold;
  hold.lock();
  int calls = 0;
  SlabOptions options{.minimum_slots = 2, .piece_bytes = 30 * 4096};
  options.fault_in = [&](std::byte* data, i64 bytes) {
    if (++calls > 2) std::lock_guard wait(hold);
    return fault_in(data, bytes);
  };
  Slab slab(two_classes(), options);
  slab.collect();
  CHECK(slab.usable_slots(0) == 2);
  CHECK(slab.usable_slots(1) == 2);
  CHECK(slab.growing());
  hold.unlock();
  while (slab.growing()) {
    slab.wait_growth(1'000'000'000);
    slab.collect();
  }
  CHECK(usable(slab) == 107);
}

TEST_CASE("a machine that runs out of memory gives fewer slots and a warning, below the minimum an error") {
  for (int granted : {0, 1, 2, 5}) {
    int calls = 0, pieces = 0;
    SlabOptions options{.minimum_slots = 2, .piece_bytes = 30 * 4096};
    options.fault_in = [&](std::byte* data, i64 bytes) {
      return ++calls <= granted && fault_in(data, bytes);
    };
    options.on_piece = [&](std::byte*, i64) { pieces++; };
    options.on_piece_gone = [&](std::byte*, i64) { pieces--; };
    warnings = 0;
    set_log_sink(count_warnings);
    if (granted < 2) {
      CHECK_THROWS_AS(Slab(two_classes(), options), Error);
    } else {
      Slab slab(two_classes(), options);
      while (slab.growing()) {
        slab.wait_growth(1'000'000'000);
        slab.collect();
      }
      CHECK(usable(slab) >= 4);
      CHECK(usable(slab) < 107);
      CHECK((granted > 2) == (usable(slab) > 4));
    }
    set_log_sink(nullptr);
    CHECK(warnings == (granted < 2 ? 0 : 1));
    CHECK(pieces == 0);
  }
}

TEST_CASE("pieces go the way they came, with their memory, and the minimum stays") {
  Pieces pieces;
  SlabOptions options{.minimum_slots = 4, .piece_bytes = 40 * 4096};
  options.on_piece = [&](std::byte* data, i64 bytes) { pieces[data] = bytes; };
  options.on_piece_gone = [&](std::byte* data, i64 bytes) {
    CHECK(pieces.at(data) == bytes);
    pieces.erase(data);
  };
  Slab slab(two_classes(), options);
  while (usable(slab) < 50) {
    slab.wait_growth(1'000'000'000);
    slab.collect();
  }
  slab.stop_growing();
  slab.collect();
  CHECK(slab.last_piece().count > 0);
  CHECK(!slab.growing());
  i64 before = usable(slab);
  while (slab.last_piece().count > 0) {
    const Slab::Range range = slab.last_piece();
    const i64 slot_class = slab.slot_class(range.first);
    std::byte* data = slab.data(range.first);
    *data = std::byte{90};
    const size_t left = pieces.size() - 1;
    CHECK(slab.drop_last_piece() == range.count * two_classes().classes[static_cast<size_t>(slot_class)].slot_bytes);
    CHECK(*data == std::byte{0});  // another page
    CHECK(pieces.size() == left);
    CHECK(usable(slab) == before - range.count);
    before = usable(slab);
    for (const auto& [gone, bytes] : pieces) CHECK((data < gone || data >= gone + bytes));
  }
  CHECK(slab.usable_slots(0) == 4);
  CHECK(slab.usable_slots(1) == 4);
  for (i64 c : {0, 1})
    for (i64 i = 0; i < 5; i++) CHECK(slab.take(c).valid() == (i < 4));
}
