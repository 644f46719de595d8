#include "scheduler/planner.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "kernels/base/error.h"
#include "kernels/base/rng.h"
#include "scheduler/tiers/slice.h"
#include "tests/scheduler/small_model.h"

using namespace stoker;
using namespace stoker::test;

namespace {

void check_plan(const ExpertTable& table, const Plan& plan, i64 budget) {
  CHECK(plan.arena_bytes() <= budget);
  i64 least = std::min(table.top_k(), table.experts_per_layer());
  i64 layers = 0;
  for (size_t c = 0; c < plan.classes.size(); c++) {
    const SlotClass& s = plan.classes[c];
    CHECK(s.slots >= least);
    CHECK(s.slots <= static_cast<i64>(s.moe_layers.size()) * table.experts_per_layer());
    CHECK(s.slot_bytes % plan.alignment == 0);
    for (i64 l : s.moe_layers) {
      layers++;
      CHECK(plan.class_of_moe_layer[static_cast<size_t>(l)] == static_cast<i64>(c));
      for (i64 e = 0; e < table.experts_per_layer(); e++) {
        LayerId layer = table.layers()[static_cast<size_t>(l)].layer;
        CHECK(expert_reads(table, layer, ExpertId(e), plan.alignment).slot_bytes <= s.slot_bytes);
      }
    }
  }
  CHECK(layers == table.moe_layers());
  CHECK(plan.all_resident == (plan.total_slots() == table.moe_layers() * table.experts_per_layer()));
}

// 58 layers of 256 experts as a big model has them: 3 x 8.26 MB, offsets that are no multiples of 4096.
ExpertTable big_table() {
  std::vector<ExpertLayer> layers;
  i64 at = 12'345'632;
  for (i64 l = 0; l < 58; l++) {
    ExpertLayer layer;
    layer.layer = LayerId(3 + l);
    for (size_t m = 0; m < 3; m++) {
      i64 bytes = 7168 * 2048 / 256 * (m == 2 && l < 6 ? 210 : 144);
      layer.base[m] = {0, at, bytes, m == 2 && l < 6 ? BlockType::Q6_K : BlockType::Q4_K};
      layer.stride_bytes[m] = bytes;
      at += bytes * 256;
    }
    layers.push_back(layer);
  }
  return ExpertTable(std::move(layers), 256, 8, {at});
}

}  // namespace

TEST_CASE("plans of random models stay within the budget and give every class its share") {
  Rng rng(7);
  for (u64 seed = 1; seed <= 50; seed++) {
    INFO("seed " << seed);
    SmallModel model{.layers = 1 + rng.below(8), .experts = 2 + rng.below(20), .top_k = 1 + rng.below(8)};
    model.sizes = 1 + rng.below(4);
    model.seed = seed;
    ExpertTable table = small_table(model);
    for (i64 alignment : {4096, 16384}) {
      i64 least = smallest_budget(table, alignment), full = full_budget(table, alignment);
      CHECK(static_cast<i64>(make_plan(table, {.ram_bytes = least, .alignment = alignment}).classes.size()) ==
            std::min(model.sizes, model.layers));
      for (i64 budget : {least, least + 1, least + rng.below(full - least + 1), full - 1, full, 2 * full}) {
        if (budget < least) continue;
        Plan plan = make_plan(table, {.ram_bytes = budget, .alignment = alignment});
        check_plan(table, plan, budget);
        CHECK(plan.all_resident == (budget >= full));
        // No class could take one more slot.
        for (const SlotClass& c : plan.classes) {
          bool full_class = c.slots == static_cast<i64>(c.moe_layers.size()) * table.experts_per_layer();
          bool more = !full_class && plan.arena_bytes() + c.slot_bytes <= budget;
          CHECK(!more);
        }
      }
      CHECK_THROWS_AS(make_plan(table, {.ram_bytes = least - 1, .alignment = alignment}), Error);
    }
  }
}

TEST_CASE("a big model's slots follow its layers") {
  ExpertTable table = big_table();
  Plan plan = make_plan(table, {.ram_bytes = 100 * kGiB});
  check_plan(table, plan, 100 * kGiB);
  REQUIRE(plan.classes.size() == 2);
  CHECK(plan.arena_bytes() > 100 * kGiB - 32 * kMiB);
  // 6 and 52 layers: the same slots for each layer, to within one.
  f64 per_layer[] = {static_cast<f64>(plan.classes[0].slots) / 6,
                     static_cast<f64>(plan.classes[1].slots) / 52};
  CHECK(per_layer[0] == doctest::Approx(per_layer[1]).epsilon(0.01));
  CHECK(plan_warning(table, plan) == "");
}

TEST_CASE("a budget that is too small is refused with the number that would do") {
  ExpertTable table = big_table();
  i64 least = smallest_budget(table, 4096);
  try {
    make_plan(table, {.ram_bytes = 100 * kMiB});
    FAIL("took it");
  } catch (const Error& e) {
    std::string message = e.what();
    INFO(message);
    i64 mib = std::stoll(message.substr(message.find("--ram ") + 6));
    CHECK(mib * kMiB >= least);
    CHECK((mib - 1) * kMiB < least);
    check_plan(table, make_plan(table, {.ram_bytes = mib * kMiB}), mib * kMiB);
  }
}

TEST_CASE("a budget below one token's experts works, with a warning that names the one that holds them") {
  ExpertTable table = big_table();
  Plan plan = make_plan(table, {.ram_bytes = 8 * kGiB});
  std::string warning = plan_warning(table, plan);
  INFO(warning);
  CHECK(warning.find("464") != std::string::npos);
  i64 mib = std::stoll(warning.substr(warning.find("--ram ") + 6));
  CHECK(plan_warning(table, make_plan(table, {.ram_bytes = mib * kMiB})) == "");
}

TEST_CASE("what devices hold of one token's experts is not missing in RAM") {
  ExpertTable table = big_table();
  PlanRequest request{.ram_bytes = 8 * kGiB, .devices = {{.vram_bytes = kGiB}}};
  std::string alone = plan_warning(table, make_plan(table, {.ram_bytes = 8 * kGiB}));
  std::string with_some = plan_warning(table, make_plan(table, request));
  INFO(with_some);
  i64 mib = std::stoll(with_some.substr(with_some.find("--ram ") + 6));
  CHECK(mib < std::stoll(alone.substr(alone.find("--ram ") + 6)));
  PlanRequest enough{.ram_bytes = mib * kMiB, .devices = request.devices};
  CHECK(plan_warning(table, make_plan(table, enough)) == "");
  request.devices[0].vram_bytes = 20 * kGiB;
  CHECK(plan_warning(table, make_plan(table, request)) == "");
}

TEST_CASE("read sizes that do not suit the alignment are refused") {
  ExpertTable table = small_table({});
  CHECK_THROWS_AS(make_plan(table, {.ram_bytes = kGiB, .piece_bytes = 1000}), Error);
  CHECK_THROWS_AS(make_plan(table, {.ram_bytes = kGiB, .alignment = 8192, .piece_bytes = 4096}), Error);
  CHECK_THROWS_AS(make_plan(table, {.ram_bytes = kGiB, .ring_depth = 0}), Error);
}

TEST_CASE("the default budget is what is available less what is still to come and a margin") {
  Machine machine{.total_ram_bytes = 24 * kGiB, .available_bytes = 20 * kGiB, .limited_by = ""};
  CHECK(memory_margin(machine) == 24 * kGiB / 16);
  CHECK(default_expert_budget(machine, 3 * kGiB, kGiB) == 16 * kGiB - 24 * kGiB / 16);
  CHECK(default_expert_budget(machine, 30 * kGiB, 0) == 0);
  machine.total_ram_bytes = kGiB;
  CHECK(memory_margin(machine) == 512 * kMiB);
  machine.total_ram_bytes = 1024 * kGiB;
  CHECK(memory_margin(machine) == 8 * kGiB);
}

TEST_CASE("devices get slots within their memory, and what RAM keeps free for exchanges is made up for by them") {
  Rng rng(7);
  for (i64 round = 0; round < 100; round++) {
    SmallModel model{.layers = 1 + rng.below(8), .experts = 4 + rng.below(40), .top_k = 3, .sizes = 1 + rng.below(3)};
    ExpertTable table = small_table(model);
    i64 full = full_budget(table, 4096), least = smallest_budget(table, 4096);
    i64 budget = least + rng.below(full - least + 1);
    PlanRequest request{.ram_bytes = budget};
    Plan without = make_plan(table, request);
    for (i64 d = rng.below(4); d > 0; d--) request.devices.push_back({.vram_bytes = rng.below(full / 2)});
    Plan plan = make_plan(table, request);
    i64 experts = plan.ram_experts();
    for (size_t d = 0; d < plan.devices.size(); d++) {
      CHECK(plan.device_arena_bytes(d) <= request.devices[d].vram_bytes);
      CHECK(plan.device_experts(d) >= 0);
      experts += plan.device_experts(d);
      for (size_t c = 0; c < plan.classes.size(); c++) CHECK(plan.devices[d].slots[c] >= plan.devices[d].exchange_slots[c]);
    }
    CHECK(experts >= without.total_slots());
    CHECK(plan.arena_bytes() == without.arena_bytes());
    CHECK((plan.all_resident || !without.all_resident));
    if (plan.all_resident) CHECK(experts >= table.moe_layers() * table.experts_per_layer());
  }
}
