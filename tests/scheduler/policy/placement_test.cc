// Placement alone: values and room are numbers, moves succeed or fail as the test says.
#include "scheduler/policy/placement.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "kernels/base/rng.h"
#include "scheduler/policy/lru_cache.h"

using namespace stoker;

namespace {

constexpr i64 kLayers = 4, kExperts = 16;

// A residency policy that is nothing but values.
class Values final : public ResidencyPolicy {
 public:
  void on_capacity(i64, i64) override {}
  void on_layer(i64, i64) override {}
  void on_use(ExpertKey, i64, f32) override {}
  void on_expect(ExpertKey, f32) override {}
  void on_admit(ExpertKey) override {}
  void on_pin(ExpertKey) override {}
  void on_unpin(ExpertKey) override {}
  void on_evict(ExpertKey) override {}
  std::optional<ExpertKey> choose_victim(i64) const override { return {}; }
  std::optional<ExpertKey> choose_victim_for(ExpertKey, f32) const override { return {}; }
  f64 worth(ExpertKey key) const override { return of[static_cast<size_t>(key.moe_layer * kExperts + key.expert.value)]; }
  std::vector<f64> of = std::vector<f64>(kLayers * kExperts);
};

struct DeviceOptions {
  i64 slots = 8;
  i64 kept = 2;
  f64 link = 1, speed = 100;
};

struct Rig {
  explicit Rig(const std::vector<DeviceOptions>& devices, i64 classes = 1, const PlacementRules& rules = {})
      : plan(plan_of(devices, classes)), placement(plan, kExperts, rules), ram_slots(static_cast<size_t>(classes), 4),
        most_moves(static_cast<size_t>(classes), 100) {
    for (const DevicePlan& d : plan.devices) free.insert(free.end(), d.slots.begin(), d.slots.end());
  }
  static Plan plan_of(const std::vector<DeviceOptions>& devices, i64 classes) {
    Plan plan{.classes = std::vector<SlotClass>(static_cast<size_t>(classes)), .cpu_gb_per_second = 20};
    for (i64 l = 0; l < kLayers; l++) plan.class_of_moe_layer.push_back(l % classes);
    for (i64 c = 0; c < classes; c++) plan.classes[static_cast<size_t>(c)].device_slot_bytes = (c + 1) * 1'000'000;
    for (const DeviceOptions& d : devices)
      plan.devices.push_back({.vram_bytes = 0, .slots = std::vector<i64>(static_cast<size_t>(classes), d.slots),
                              .exchange_slots = std::vector<i64>(static_cast<size_t>(classes), d.kept),
                              .link_gb_per_second = d.link, .gb_per_second = d.speed});
    return plan;
  }
  size_t class_of(ExpertKey key) const { return static_cast<size_t>(plan.class_of_moe_layer[static_cast<size_t>(key.moe_layer)]); }
  i64& free_of(i32 device, size_t c) { return free[static_cast<size_t>(device) * plan.classes.size() + c]; }
  std::vector<ExpertKey> in_ram() const {
    std::vector<ExpertKey> keys;
    for (i64 l = 0; l < kLayers; l++)
      for (i64 e = 0; e < kExperts; e++)
        if (!where.contains(l * kExperts + e)) keys.push_back({l, ExpertId(e)});
    return keys;
  }
  // One token that wanted all of RAM, or a layer of a piece. The moves it leads to.
  std::vector<Placement::Move> token() {
    placement.on_pass(1);
    return choose();
  }
  std::vector<Placement::Move> piece_layer(i64 layer, i64 tokens) {
    placement.on_piece_layer(layer, tokens);
    return choose();
  }
  std::vector<Placement::Move> choose() {
    std::vector<Placement::Move> moves;
    placement.choose(values, in_ram(), {free, ram_slots, most_moves}, moves);
    std::set<i64> touched;
    std::vector<i64> back(plan.classes.size());
    for (const Placement::Move& m : moves) {
      i64 up = m.up.moe_layer * kExperts + m.up.expert.value;
      REQUIRE(!where.contains(up));
      CHECK(touched.insert(up).second);
      free_of(m.device, class_of(m.up))--;
      CHECK(free_of(m.device, class_of(m.up)) >= 0);
      if (!m.down) {
        CHECK(free_of(m.device, class_of(m.up)) >= plan.devices[static_cast<size_t>(m.device)].exchange_slots[class_of(m.up)]);
        continue;
      }
      i64 down = m.down->moe_layer * kExperts + m.down->expert.value;
      CHECK(touched.insert(down).second);
      CHECK(class_of(*m.down) == class_of(m.up));
      REQUIRE(where.contains(down));
      CHECK(where[down] == m.device);
      back[class_of(m.up)]++;
    }
    for (size_t c = 0; c < back.size(); c++) CHECK(back[c] <= ram_slots[c]);
    return moves;
  }
  void end(const Placement::Move& m, bool moved = true) {
    placement.on_end(m, moved);
    if (!moved || m.down) free_of(m.device, class_of(m.up))++;
    if (!moved) return;
    where[m.up.moe_layer * kExperts + m.up.expert.value] = m.device;
    if (m.down) where.erase(m.down->moe_layer * kExperts + m.down->expert.value);
  }
  std::vector<Placement::Move> run() { return ended(token()); }
  std::vector<Placement::Move> run_piece_layer(i64 layer, i64 tokens) { return ended(piece_layer(layer, tokens)); }
  std::vector<Placement::Move> ended(std::vector<Placement::Move> moves) {
    for (const Placement::Move& m : moves) end(m);
    return moves;
  }
  void set(i64 node, f64 worth) { values.of[static_cast<size_t>(node)] = worth; }

  Plan plan;
  Placement placement;
  Values values;
  std::map<i64, i32> where;  // node -> device
  std::vector<i64> free, ram_slots, most_moves;
};

}  // namespace

TEST_CASE("free slots are filled with the best, and those kept for exchanges are not") {
  Rig rig({{.slots = 8, .kept = 2}});
  for (i64 n = 0; n < 20; n++) rig.set(n, .5 + .01 * static_cast<f64>(n));
  CHECK(rig.run().size() == 6);
  CHECK(rig.placement.experts(0) == 6);
  for (i64 n = 14; n < 20; n++) CHECK(rig.where.contains(n));
  for (i64 i = 0; i < 10; i++) CHECK(rig.run().empty());
}

TEST_CASE("an exchange needs a factor, a margin, and a victim that has been there for a while") {
  Rig rig({{.slots = 3, .kept = 1}}, 1, {.factor = 1.5, .margin = .1, .dwell_tokens = 16});
  rig.set(0, .4);
  rig.set(1, .5);
  CHECK(rig.run().size() == 2);
  CHECK(rig.run().empty());
  CHECK(!rig.placement.offers_all());
  rig.set(2, .72);
  for (i64 i = 0; i < 13; i++) CHECK(rig.run().empty());  // dwell
  std::vector<Placement::Move> moves = rig.run();
  for (i64 i = 0; i < 3 && moves.empty(); i++) moves = rig.run();
  REQUIRE(moves.size() == 1);
  CHECK(moves[0].up == ExpertKey{0, ExpertId(2)});
  CHECK(*moves[0].down == ExpertKey{0, ExpertId(0)});
  rig.set(0, .8);  // less than 1.5 * .5 + .1
  for (i64 i = 0; i < 30; i++) CHECK(rig.run().empty());
  rig.set(0, .9);
  CHECK(rig.run().size() == 1);
}

TEST_CASE("at first neither dwell nor allowance hold, until nothing is left to gain") {
  Rig rig({{.slots = 10, .kept = 2, .link = .001}}, 1, {.dwell_tokens = 1000});
  for (i64 n = 0; n < 8; n++) rig.set(n, .2);
  std::fill(rig.most_moves.begin(), rig.most_moves.end(), 8);
  CHECK(rig.run().size() == 8);
  CHECK(rig.placement.offers_all());  // others are as good as nothing, but had no move left
  for (i64 n = 0; n < 16; n++) rig.set(n, n < 8 ? .2 : .35);
  CHECK(rig.run().empty());  // not by factor and margin
  for (i64 n = 8; n < 16; n++) rig.set(n, .5);
  CHECK(!rig.placement.offers_all());
  CHECK(rig.run().empty());
}

TEST_CASE("a layer of a prompt's piece exchanges by a small margin, within its part of the piece's allowance") {
  // 1 MB per expert; 0.4 GB/s * 10 ms * 8 tokens / 4 layers: eight per layer.
  Rig rig({{.slots = 40, .kept = 16, .link = .4}}, 1, {.factor = 1.2, .dwell_tokens = 16, .allowance_ns = 10'000'000});
  rig.ram_slots = {16};
  for (i64 n = 0; n < 24; n++) rig.set(n, .2);  // layer 0 and half of layer 1
  rig.run();
  rig.run();
  CHECK(rig.placement.experts(0) == 24);
  for (i64 n = 24; n < 64; n++) rig.set(n, .28);  // more than .2 * 1.2 + .03
  for (i64 i = 0; i < 20; i++) CHECK(rig.run().empty());
  std::vector<Placement::Move> moves = rig.run_piece_layer(1, 8);
  CHECK(moves.size() == 8);
  CHECK(rig.run_piece_layer(1, 8).size() == 8);
  // Those that have come with this piece stay in it.
  for (i64 n = 0; n < 64; n++) rig.set(n, rig.where.contains(n) ? .1 : .9);
  for (const Placement::Move& m : rig.run_piece_layer(3, 8)) {
    REQUIRE(m.down);
    CHECK(m.down->moe_layer * kExperts + m.down->expert.value < 24);
  }
}

TEST_CASE("a piece takes nothing from layers that it has not come to") {
  Rig rig({{.slots = 20, .kept = 4}}, 1, {.dwell_tokens = 0});
  for (i64 n = 32; n < 48; n++) rig.set(n, .01);  // layer 2
  rig.run();
  rig.run();
  CHECK(rig.placement.experts(0) == 16);
  for (i64 n = 0; n < 16; n++) rig.set(n, .9);
  CHECK(rig.run_piece_layer(0, 100).empty());
  CHECK(rig.run_piece_layer(1, 100).empty());
  CHECK(rig.run_piece_layer(2, 100).size() == 4);
  CHECK(rig.run().size() == 4);
}

TEST_CASE("the allowance of a link is what it carries in its time per token") {
  // 1 MB per expert, 0.5 GB/s * 10 ms: five per token.
  Rig rig({{.slots = 48, .kept = 16, .link = .5}}, 1, {.dwell_tokens = 0, .allowance_ns = 10'000'000});
  rig.ram_slots = {16};
  for (i64 n = 0; n < 32; n++) rig.set(n, .1);
  rig.run();
  rig.run();
  CHECK(rig.placement.experts(0) == 32);
  for (i64 n = 32; n < 64; n++) rig.set(n, .9);
  for (i64 i = 0; i < 6; i++) CHECK(rig.run().size() == 5);
}

TEST_CASE("unequal devices get experts by the work they do, and a device slower than the CPU gets none") {
  Rig rig({{.slots = 40, .kept = 2, .speed = 400}, {.slots = 40, .kept = 2, .speed = 100}, {.slots = 40, .kept = 2, .speed = 15}});
  for (i64 n = 0; n < 64; n++) rig.set(n, n < 40 ? .5 : 0);
  rig.most_moves = {40};
  rig.run();
  CHECK(rig.placement.experts(2) == 0);
  CHECK(rig.placement.experts(0) > 2 * rig.placement.experts(1));
  CHECK(rig.placement.experts(1) >= 2);
}

TEST_CASE("a failed move leaves both where they were, a lost device has nothing and gets nothing") {
  Rig rig({{.slots = 6, .kept = 1}, {.slots = 6, .kept = 1}}, 1, {.dwell_tokens = 0});
  for (i64 n = 0; n < 40; n++) rig.set(n, n < 10 ? .2 : 0);
  rig.run();
  CHECK(rig.placement.experts(0) == 5);
  CHECK(rig.placement.experts(1) == 5);
  rig.run();
  rig.set(20, .9);
  std::vector<Placement::Move> moves = rig.token();
  REQUIRE(moves.size() == 1);
  i32 device = moves[0].device;
  rig.end(moves[0], false);
  CHECK(rig.placement.experts(device) == 5);
  moves = rig.token();  // again
  REQUIRE(moves.size() == 1);
  rig.placement.on_lost(moves[0].device);
  CHECK(rig.placement.experts(moves[0].device) == 0);
  rig.placement.on_end(moves[0], false);
}

TEST_CASE("random lives: never over a device's room, never twice, the same events give the same moves") {
  for (u64 seed = 1; seed <= 40; seed++) {
    INFO("seed " << seed);
    std::vector<std::vector<Placement::Move>> history[2];
    for (auto& lives : history) {
      Rng rng(seed);
      i64 classes = 1 + rng.below(2);
      std::vector<DeviceOptions> devices;
      for (i64 d = 1 + rng.below(3); d > 0; d--) {
        i64 slots = rng.below(12);
        devices.push_back({slots, slots < 2 ? 0 : 1 + rng.below(slots / 2), .1 + rng.uniform(), 30 + 500 * rng.uniform()});
      }
      Rig rig(devices, classes, {.dwell_tokens = rng.below(5)});
      std::vector<Placement::Move> under_way;
      for (i64 t = 0; t < 60; t++) {
        for (f64& v : rig.values.of) v = std::max(0., v * .9 + (rng.uniform() < .1 ? rng.uniform() * .3 : 0));
        if (under_way.empty()) {
          under_way = rng.below(5) > 0 ? rig.token() : rig.piece_layer(rng.below(kLayers), 1 + rng.below(50));
          lives.push_back(under_way);
        }
        while (!under_way.empty() && rng.below(3) > 0) {
          rig.end(under_way.back(), rng.below(10) > 0);
          under_way.pop_back();
        }
        for (size_t d = 0; d < devices.size(); d++)
          CHECK(rig.placement.experts(static_cast<i64>(d)) <= classes * (devices[d].slots - devices[d].kept));
      }
    }
    CHECK(history[0].size() == history[1].size());
    for (size_t i = 0; i < std::min(history[0].size(), history[1].size()); i++) {
      REQUIRE(history[0][i].size() == history[1][i].size());
      for (size_t m = 0; m < history[0][i].size(); m++) CHECK(history[0][i][m].up == history[1][i][m].up);
    }
  }
}
